"""Finds the mathematical answer in a response or a reference, and defines the canonical form in which it is stored."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from stages.tasks.boxes import Box, after_thinking, find_boxes
from stages.tasks.maths_normalization import compact, is_list, normalize
from stages.tasks.numbers import format_number, read_exact_number

MAX_ANSWER_CHARACTERS = 2_000
"""A longer answer is wrong without being read: every reference is far shorter."""
_CACHE_SIZE = 16_384
_TAIL_CHARACTERS = 2_000
"""Without a box, the answer is searched for in this much of the end of a response."""
_MAX_NUMBER_CHARACTERS = 40
"""A number whose canonical form is longer keeps its own notation, such as `1e400`."""
# What may separate the boxes of one list. A reference is trusted to put no more than punctuation, "and" or "or" there;
# a response may write a few characters, or a longer passage that contains a comma, "and" or "or".
_BETWEEN_REFERENCES = re.compile(r"(?:[\s$.,;]|\\[()\[\]]|\\text\s*\{|\}|\\q?quad|\band\b|\bor\b|[^\w\s]){0,40}")
_BETWEEN_ANSWERS = re.compile(r".{0,9}|.{0,70}?(?:,|;|\band\b|\bor\b).{0,70}", re.S)
_ANNOUNCEMENT = re.compile(r"(?:\bfinal\s+)?\banswer(?:\s+is\b|\s*[:=*\n])", re.I)
# An announcement followed by a formula in $…$, \(…\) or \[…\], or by a number, and nothing else.
_ANNOUNCED_FORMULA = re.compile(
    r"(?:final\s+)?answer(?:\s+is\b|\s*[:=])[\s:*]*+"
    r"(?:\$\$?+([^$\n]{1,200})\$\$?+|\\\(([^$\n]{1,200}?)\\\)|\\\[([^$\n]{1,200}?)\\\]|([-+]?[0-9][0-9,./]*+))[\s.*]*+",
    re.I,
)
_FINAL_ANSWER = re.compile(r"final answer is:?\s*+(?=[$\\]|[-+]?[0-9])", re.I)


class StatedAnswer(NamedTuple):
    """Where a response states its answer. At most one of the two is non-empty.

    Attributes:
      content: content of the last box, or the formula that "answer is" announces at the very end; None if there is
        neither.
      ending: the end of the text, which contains the answer in a place that only a parser can find; "" if `content` is
        set, or if the response states no answer.
    """

    content: str | None
    ending: str


def find_answer(response: str, expects_list: bool) -> StatedAnswer:
    """Return the answer of a response: the last box after the thinking, or else the end of the text.

    "The final answer is $…$" after the last box overrides the box. A text that ends inside a box states no answer.

    Args:
      expects_list: whether the reference is a list; adjacent boxes, as in `\\boxed{1}` and `\\boxed{2}`, then form one
        answer.
    """
    text = after_thinking(response)
    boxes, truncated = find_boxes(text)
    if truncated:
        return StatedAnswer(None, "")
    end = boxes[-1].end if boxes else 0
    if not boxes or _FINAL_ANSWER.search(text, end):
        ending = _ending(text[end:])
        formula = _ANNOUNCED_FORMULA.fullmatch(ending)
        return StatedAnswer(formula[formula.lastindex or 0], "") if formula else StatedAnswer(None, ending)
    last = boxes[-1].content
    if expects_list and len(boxes) > 1 and not is_list(normalize(last[:MAX_ANSWER_CHARACTERS])):
        last = _join_last_boxes(text, boxes, _BETWEEN_ANSWERS)
    # One character more than the maximum, so that a longer answer is recognized as such.
    return StatedAnswer(last[: MAX_ANSWER_CHARACTERS + 1], "")


def strip_announcement(ending: str) -> str:
    """Return the end of a text without its announcement: `answer is Friday.` → `Friday.`"""
    return _ANNOUNCEMENT.sub("", ending, count=1).strip(" *:\n")


@lru_cache(_CACHE_SIZE)
def read_reference(reference: str) -> str:
    """Return the normalized answer of a reference: its last boxes if it is a worked solution, else the whole text."""
    boxes, _ = find_boxes(reference)
    return normalize(_join_last_boxes(reference, boxes, _BETWEEN_REFERENCES) if boxes else reference)


@lru_cache(_CACHE_SIZE)
def canonical_form(answer: str) -> str:
    """Return the form in which an answer is stored: a number as `18`, `0.5`, `1/3`, any other answer compactly."""
    text = normalize(answer)
    if number := read_exact_number(text):
        written = format_number(number.value) + "%" * number.percent
        if len(written) <= _MAX_NUMBER_CHARACTERS:
            return written
    return compact(text)


def _join_last_boxes(text: str, boxes: list[Box], between: re.Pattern[str]) -> str:
    """Return the contents of the last boxes as a list, going back as long as `between` matches what separates them.

    Equal neighbors count once.
    """
    contents = [boxes[-1].content]
    for before, after in zip(reversed(boxes[:-1]), reversed(boxes[1:]), strict=True):
        if not between.fullmatch(text, before.end, after.start):
            break
        if before.content != contents[-1]:
            contents.append(before.content)
    return ",".join(reversed(contents))


def _ending(text: str) -> str:
    """Return a text from its last announcement of an answer; without one, the complete lines in its last characters."""
    tail = text[-_TAIL_CHARACTERS:]
    announced = max((match.start() for match in _ANNOUNCEMENT.finditer(tail)), default=-1)
    if announced >= 0:
        return tail[announced:]
    return tail[tail.find("\n") + 1 :] if len(text) > _TAIL_CHARACTERS and "\n" in tail.rstrip() else tail
