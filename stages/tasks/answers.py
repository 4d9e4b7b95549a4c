r"""Find the answer that a response states, for every grader that reads running text.

A response may state its answer in a box, in `<answer>` tags, after `####`, after "the answer is", or in a last sentence
that concludes with it. `find_answer` returns the text of the statement without reading its value.

Responses are untrusted: all functions look at a bounded end of a text, or read it once in linear time.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from stages.tasks.boxes import Box, after_thinking, find_boxes, is_blank
from stages.tasks.verdicts import Place, Reason, Step

MAX_ANSWER_CHARACTERS = 2_000
"""A longer answer is wrong without being read: every reference is far shorter."""
_TAIL_CHARACTERS = 2_000
"""Without a box or an announcement, the answer is searched for in this much of the end of a response."""
_STATEMENT_CHARACTERS = 400
"""The longest statement after "the answer is"."""
ANSWER_MARK = "####"
"""GSM8K's solutions end with this mark and the answer."""

_TAG = re.compile(r"<answer>(?P<content>[^<]*+(?:<(?!/?answer>)[^<]*+)*+)</answer>", re.I)
_FORMULA = re.compile(r"\$\$([^$]+)\$\$|\$([^$\n]+)\$|\\\(((?:[^\\]|\\[^)])+?)\\\)|\\\[((?:[^\\]|\\[^\]])+?)\\\]")
_BECOMES = r"(?:is|are)(?:\s+(?:therefore|thus|then|hence|simply|just|indeed|clearly|now|also|equal\s+to))?\b"
_ANNOUNCEMENT = re.compile(
    r"\b(?P<noun>answer|option|choice)\b(?:\s+(?:to|for|of)\s[^.\n$]{1,60}?)?"
    rf"(?:\s+{_BECOMES}\s*:?|\s*[:=]|\s*\*+\s*:?|\s*\n|\s+(?=\$|\\\(|\\\[))",
    re.I,
)
_FINAL_ANSWER = re.compile(r"final answer is:?\s*+(?=\$|\\[(\[]|[-+]?[0-9])", re.I)
_REMARK = re.compile(
    r"(?:also\s+)?(?:correct|right|reasonable|valid|consistent|plausible|verified|positive|as follows)\b", re.I
)
"""What follows "the answer is" in a remark about an answer that was stated before."""
_STATEMENT_END = re.compile(r"[.!?](?=[\s*\"”)]|$)|\n|,?\s(?:since|because|which|as|so|but|I hope)\b")
_CONCLUSION = re.compile(
    r"\s*(?:so|thus|therefore|hence|consequently|finally|in conclusion|in total|altogether)\b", re.I
)
_LEADS_TO_VALUE = re.compile(
    r"(?:\b(?:is|are|was|be|equals?|equal to|gets?|have|has|obtain|find|gives?|yields?|makes?|costs?|by|answer|result"
    r"|solution|value|total|of|so|thus|therefore|hence)\s*(?:just|about|approximately|only|exactly)?|[:=,])\s*[*\"“(]*$",
    re.I,
)
_HEDGE = re.compile(
    r"\b(?:if|not|no|never|either|or|maybe|perhaps|possibly|could|would|might|may|unknown|cannot|unless|suppose|assume"
    r"|guess|try|tried|wrong|incorrect|impossible|than|least|most|between|remains?|left to)\b|n't\b",
    re.I,
)
_NUMBER_AT_END = re.compile(r"(?P<number>[-−]?\$?\s?[0-9][0-9,./]*(?<![.,])\s*(?:\\?%|percent|[$€£])?)[.!\"*\s]*$")
_AFTER_FORMULA = re.compile(
    r"[\s.,!*\"”)]*(?:(?:is|as)\s+(?:our|the)\s+(?:final\s+)?(?:answer|solution|result|value)[\s.!*]*)?(?:[-~–—]\s*\w{2,20})?"
)
"""What may follow the last formula: "is our answer", or the signature of a solution."""
_UNITS_AFTER_FORMULA = re.compile(r"\s*(?P<unit>%|[A-Za-z°]{1,15}(?:\s[a-z]{1,12})?)[\s.!*]*")
_SENTENCE_BREAK = re.compile(r"(?<=[.!?])(?:\$\$?|\\[)\]])?[\s*]+|\n+")
# What may separate the boxes of one list: punctuation, "and" or "or", and up to three other words.
_SEPARATION = re.compile(r"(?:[\s$.,;:*+()]|\\[()\[\],;! ]|\\text\s*\{|[{}]|\\q?quad)*", re.S)
_EITHER = re.compile(r"\b(?:either|maybe|perhaps|possibly|might|could|not sure)\b", re.I)
"""A word that makes two boxes alternatives. Without it the last box counts: solutions of MATH box `$-2$ and $1$`."""
_WORD = re.compile(r"[A-Za-z]+")


class Stated(NamedTuple):
    """The answer that a response states.

    Attributes:
      text: the statement; None if there is none.
      place: where it is.
      reason: `EQUAL` if nothing rules the answer out, else why it cannot count.
      steps: how it was found.
    """

    text: str | None
    place: Place
    reason: Reason = Reason.EQUAL
    steps: tuple[Step, ...] = ()


def find_answer(response: str, is_list: Callable[[str], bool] | None = None) -> Stated:
    r"""Return the answer that a response states, or why there is none.

    After the thinking, the first of these that the response has: the last `<answer>`, the last box that is not blank,
    what "the answer is" announces, what follows `####`, and the conclusion of the last sentence. "The final answer is
    $…$" after the last box overrides it.

    Args:
      is_list: given if the reference has several values: whether the content of a box has several, too. If it has not,
        boxes with words between them form one answer.
    """
    text = after_thinking(response)
    boxes, is_open = find_boxes(text)
    steps: tuple[Step, ...] = ()
    if is_open:
        return Stated(None, Place.NOWHERE, Reason.OPEN_BOX)
    if tag := _last_tag(text):
        boxes, is_open = find_boxes(tag)
        if is_open:
            return Stated(None, Place.NOWHERE, Reason.OPEN_BOX)
        text = tag
    blank = [box for box in boxes if is_blank(box.content)]
    if blank:
        steps = (Step("skip an empty box", text[blank[-1].start : blank[-1].end]),)
        boxes = [box for box in boxes if box not in blank]
    if blank and not boxes:
        text = "".join(_outside(text, blank))
    if boxes:
        final = _last_match(_FINAL_ANSWER, text, boxes[-1].end)
        said = _statement(text, final.end()) if final else ""
        return Stated(said, Place.ANNOUNCED, steps=steps) if said else _from_boxes(text, boxes, is_list, steps)
    if tag:
        return Stated(tag.strip()[: MAX_ANSWER_CHARACTERS + 1], Place.TAG, steps=steps)
    for find in (find_announced, find_marked, find_concluded):
        if (found := find(text)) is not None:
            return found._replace(steps=steps)
    return Stated(None, Place.NOWHERE, Reason.NO_ANSWER, steps)


def _outside(text: str, boxes: list[Box]) -> list[str]:
    """Return the parts of a text outside boxes."""
    bounds = [0, *(bound for box in boxes for bound in (box.start, box.end)), len(text)]
    return [text[start:end] for start, end in zip(bounds[::2], bounds[1::2], strict=True)]


def find_announced(text: str) -> Stated | None:
    """Return what the last "the answer is" or "the correct option is" announces; None without an announcement."""
    text = text[-20 * _TAIL_CHARACTERS :]
    for match in reversed(list(_ANNOUNCEMENT.finditer(text))):
        said = _statement(text, match.end())
        if said and not _REMARK.match(said) and not is_blank(said):
            place = Place.ANNOUNCED if match["noun"].lower() == "answer" else Place.OPTION
            return Stated(said, place)
    return None


def find_marked(text: str) -> Stated | None:
    """Return the line after the last `####`; None without a mark or if the line is empty."""
    _, mark, tail = text.rpartition(ANSWER_MARK)
    line = tail[:_STATEMENT_CHARACTERS].partition("\n")[0].strip(" \t:*")
    return Stated(_plain(line), Place.MARK) if mark and line else None


def find_concluded(text: str) -> Stated | None:
    """Return what the end of a text concludes, such as `Therefore $x = 4$.`; None if it concludes nothing.

    A sentence that is cut off, hedges, or only mentions a number concludes nothing. A whole text of one formula or word
    is the answer.
    """
    tail = text[-_TAIL_CHARACTERS:].strip()
    if not tail:
        return None
    if tail == text.strip() and len(tail) <= 200 and _is_bare(tail):
        return Stated(_plain(tail), Place.WHOLE_TEXT)
    return _concluding_formula(tail) or _concluding_number(tail)


def _concluding_formula(tail: str) -> Stated | None:
    formulas = list(_FORMULA.finditer(tail))
    if not formulas:
        return None
    last = formulas[-1]
    after = tail[last.end() :]
    unit = None if _AFTER_FORMULA.fullmatch(after) else _UNITS_AFTER_FORMULA.fullmatch(after)
    if unit is None and not _AFTER_FORMULA.fullmatch(after):
        return None
    lead = _SENTENCE_BREAK.split(tail[: last.start()])[-1]
    is_display = last[0].startswith((r"\[", "$$"))
    concludes = not lead.strip(" *") or _LEADS_TO_VALUE.search(lead) or _CONCLUSION.match(lead) or is_display
    if not concludes or _HEDGE.search(lead + " " + after):
        return None
    content = next(group for group in last.groups() if group is not None).strip()
    return Stated(f"{content} {unit['unit']}" if unit else content, Place.FORMULA)


def _concluding_number(tail: str) -> Stated | None:
    sentence = _SENTENCE_BREAK.split(tail)[-1]
    number = _NUMBER_AT_END.search(sentence)
    if not number or _HEDGE.search(sentence):
        return None
    lead = sentence[: number.start()]
    is_whole = re.fullmatch(r"\s*(?:(?:it is|just|about|approximately|so)\s*)*", lead, re.I)
    is_complete = sentence.rstrip('*" ').endswith((".", "!"))
    if is_whole or (is_complete and _CONCLUSION.match(lead) and _LEADS_TO_VALUE.search(lead)):
        return Stated(number["number"].strip(), Place.LAST_NUMBER)
    return None


def join_boxes(text: str, boxes: list[Box]) -> str:
    """Return the contents of the last boxes as a list, going back as long as they belong together.

    Punctuation, or a few words with "and", "or" or a comma, connect two boxes. Equal neighbors count once.
    """
    contents = [boxes[-1].content]
    for before, after in zip(reversed(boxes[:-1]), reversed(boxes[1:]), strict=True):
        if not _connects(text[before.end : after.start], most_words=3):
            break
        if before.content != contents[-1]:
            contents.append(before.content)
    return ",".join(reversed(contents))


def _from_boxes(text: str, boxes: list[Box], is_list: Callable[[str], bool] | None, steps: tuple[Step, ...]) -> Stated:
    last = boxes[-1].content
    joined = last
    if len(boxes) > 1:
        lead = _SENTENCE_BREAK.split(text[max(boxes[-2].start - 100, 0) : boxes[-2].start])[-1]
        is_hedged = _EITHER.search(lead + " " + text[boxes[-2].end : boxes[-1].start][:60])
        if is_list:
            joined = last if is_list(last) else join_answer_boxes(text, boxes)
        elif is_hedged:
            joined = join_boxes(text, boxes)
    place = Place.BOX if joined == last else Place.BOXES
    # One character more than the maximum, so that a longer answer is recognized as such.
    return Stated(joined[: MAX_ANSWER_CHARACTERS + 1], place, steps=steps)


def join_answer_boxes(text: str, boxes: list[Box]) -> str:
    """Return the contents of the last boxes as a list, with up to 140 characters of prose between them."""
    contents = [boxes[-1].content]
    for before, after in zip(reversed(boxes[:-1]), reversed(boxes[1:]), strict=True):
        between = text[before.end : after.start]
        if len(between) > 9 and not (len(between) <= 140 and re.search(r",|;|\band\b|\bor\b", between)):
            break
        if before.content != contents[-1]:
            contents.append(before.content)
    return ",".join(reversed(contents))


def _connects(between: str, most_words: int) -> bool:
    """Return whether what stands between two boxes connects them: punctuation, "and", "or", and a few more words."""
    if len(between) > 60:
        return False
    plain = re.sub(r"\\(?:text|mbox|q?quad)(?![A-Za-z])", " ", between)
    words = [word.lower() for word in _WORD.findall(plain)]
    joints = [word for word in words if word in ("and", "or")]
    others = len(words) - len(joints)
    if _SENTENCE_BREAK.search(plain.strip()) or len(joints) > 1:
        return False
    return others == 0 or (others <= most_words and bool(joints or "," in plain or ";" in plain))


def _last_tag(text: str) -> str | None:
    """Return the content of the last `<answer>…</answer>`; None if there is none or it is blank."""
    if "<answer>" not in text.lower():
        return None
    tags = [match["content"] for match in _TAG.finditer(text)]
    return tags[-1] if tags and not is_blank(tags[-1]) else None


def _last_match(pattern: re.Pattern[str], text: str, start: int) -> re.Match[str] | None:
    last = None
    for match in pattern.finditer(text, start):
        last = match
    return last


def _statement(text: str, start: int) -> str:
    """Return the statement that starts at a position: up to the end of the sentence or line, without delimiters."""
    rest = text[start : start + _STATEMENT_CHARACTERS].lstrip(' \t\n:*"“')
    pieces, position = [], 0
    while position < len(rest):
        formula = _FORMULA.search(rest, position)
        end = _STATEMENT_END.search(rest, position)
        if formula and (not end or formula.start() < end.start()):
            pieces.append(rest[position : formula.start()])
            pieces.append(next(group for group in formula.groups() if group is not None).strip())
            position = formula.end()
            continue
        pieces.append(rest[position : end.start() if end else len(rest)])
        break
    return _plain("".join(pieces))


def _plain(text: str) -> str:
    """Return a statement without emphasis, quotes, and the delimiters of one formula around it."""
    text = text.strip().strip('*"“” \t')
    formula = _FORMULA.fullmatch(text.rstrip(".,"))
    if formula:
        return next(group for group in formula.groups() if group is not None).strip()
    return text.replace("**", "").strip()


def _is_bare(text: str) -> bool:
    """Return whether a text is a formula, a number with a unit, or at most two words, rather than a sentence."""
    if _FORMULA.fullmatch(text.rstrip(". ")):
        return True
    if "$" in text.strip("$") or "\n" in text or _HEDGE.search(text):
        return False
    plain = re.sub(r"\\text\s*\{[^{}]*\}|\\[A-Za-z]+", " ", text)
    words = [word for word in _WORD.findall(plain) if len(word) > 1]
    return not words or (len(words) <= 2 and (not re.search("[0-9]", plain) or bool(re.match(r"[-+$]*[0-9]", plain))))
