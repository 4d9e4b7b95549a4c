"""Owns what a response or a reference states as its mathematical answer, and the form in which that is stored."""

from __future__ import annotations

import re
from functools import lru_cache

from stages.tasks.boxes import Box, after_thinking, find_boxes
from stages.tasks.maths_spelling import is_list, spell, tight
from stages.tasks.numbers import format_number, read_exact_number

LONGEST = 2_000
"""Characters of an answer that are read as mathematics. No reference comes near: a longer answer is wrong."""
_TAIL = 2_000
_LONGEST_NUMBER = 40
_BETWEEN_REFERENCES = re.compile(r"(?:[\s$.,;]|\\[()\[\]]|\\text\s*\{|\}|\\q?quad|\band\b|\bor\b|[^\w\s]){0,40}")
_BETWEEN_ANSWERS = re.compile(r".{0,9}|.{0,70}?(?:,|;|\band\b|\bor\b).{0,70}", re.S)
_ANNOUNCED = re.compile(r"(?:\bfinal\s+)?\banswer(?:\s+is\b|\s*[:=*\n])", re.I)
_ALONE = re.compile(
    r"(?:final\s+)?answer(?:\s+is\b|\s*[:=])[\s:*]*+"
    r"(?:\$\$?+([^$\n]{1,200})\$\$?+|\\\(([^$\n]{1,200}?)\\\)|\\\[([^$\n]{1,200}?)\\\]|([-+]?[0-9][0-9,./]*+))[\s.*]*+",
    re.I,
)
_FINAL = re.compile(r"final answer is:?\s*+(?=[$\\]|[-+]?[0-9])", re.I)


def state(response: str, listed: bool) -> tuple[str | None, str]:
    """Where a response states its answer: in the last box behind the thinking, or in a text.

    "The final answer is $…$" behind the last box overrides it. A text that breaks off within a box states nothing.

    Args:
      listed: whether a list is asked for; boxes in a row, as in `\\boxed{1}` and `\\boxed{2}`, then count as one.

    Returns:
      the content of the box, or what "answer is" announces at the very end; None if there is neither. And, for want of
      both, the end of the text, somewhere in which the answer is stated ("": it states nothing).
    """
    text = after_thinking(response)
    boxes, broken = find_boxes(text)
    if broken:
        return None, ""
    end = boxes[-1].end if boxes else 0
    if not boxes or _FINAL.search(text, end):
        ending = _ending(text[end:])
        alone = _ALONE.fullmatch(ending)
        return (alone[alone.lastindex or 0], "") if alone else (None, ending)
    last = boxes[-1].content
    if listed and len(boxes) > 1 and not is_list(spell(last[:LONGEST])):
        last = _joined(text, boxes, _BETWEEN_ANSWERS)
    return last[: LONGEST + 1], ""


def announced(ending: str) -> str:
    """What an end of a text that `state` gives announces, if it is that alone: `answer is Friday.` → `Friday.`"""
    return _ANNOUNCED.sub("", ending, count=1).strip(" *:\n")


@lru_cache(16_384)
def stated_reference(reference: str) -> str:
    """The answer in a reference, in our spelling: of its last boxes if it is a worked solution, else of all of it."""
    boxes, _ = find_boxes(reference)
    return spell(_joined(reference, boxes, _BETWEEN_REFERENCES) if boxes else reference)


@lru_cache(16_384)
def canonical(answer: str) -> str:
    """The form in which an answer is stored: a number as `18`, `0.5`, `1/3`; all else without needless spaces."""
    text = spell(answer)
    number = read_exact_number(text)
    written = format_number(number.value) + "%" * number.percent if number else ""
    return written if number and len(written) <= _LONGEST_NUMBER else tight(text)


def _joined(text: str, boxes: list[Box], between: re.Pattern[str]) -> str:
    """The last boxes that nothing but what `between` matches keeps apart, as a list; equal neighbours count once."""
    contents = [boxes[-1].content]
    for before, after in zip(reversed(boxes[:-1]), reversed(boxes[1:]), strict=True):
        if not between.fullmatch(text, before.end, after.start):
            break
        if before.content != contents[-1]:
            contents.append(before.content)
    return ",".join(reversed(contents))


def _ending(text: str) -> str:
    """From where a text last announces its answer; without that, its last lines, as many as `_TAIL` characters hold."""
    tail = text[-_TAIL:]
    announced = max((match.start() for match in _ANNOUNCED.finditer(tail)), default=-1)
    if announced >= 0:
        return tail[announced:]
    return tail[tail.find("\n") + 1 :] if len(text) > _TAIL and "\n" in tail.rstrip() else tail
