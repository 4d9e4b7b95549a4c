r"""Find the answer that a response states, for every grader that reads running text.

A response may state its answer in a box, in `<answer>` tags, after `####`, after "the answer is", or in a last sentence
that concludes with it. `find_answer` returns the text of the statement without reading its value.

Responses are untrusted: all functions look at a bounded end of a text, or read it once in linear time.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from stages.tasks.boxes import Box, after_thinking, find_boxes, is_blank
from stages.tasks.statements import (
    FORMULA,
    MAX_ANSWER_CHARACTERS,
    TAIL_CHARACTERS,
    Stated,
    find_announced,
    find_final_answer,
    find_marked,
    formula_content,
    without_delimiters,
)
from stages.tasks.verdicts import Place, Reason, Step

_TAG = re.compile(r"<answer>(?P<content>[^<]*+(?:<(?!/?answer>)[^<]*+)*+)</answer>", re.I)
_CONCLUSION = re.compile(
    r"\s*(?:so|thus|therefore|hence|consequently|finally|in conclusion|in total|altogether)\b", re.I
)
_LEADS_TO_VALUE = re.compile(
    r"(?:\b(?:is|are|was|be|equals?|equal to|gets?|have|has|obtain|find"
    r"|(?:find|get|have|see|obtain)\s+that|gives?|yields?|makes?|costs?|by|answer|result"
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
_CLOSING = re.compile(
    r"(?:\s*(?:(?:please\s+)?let me know|I hope|hope (?:this|that|it)|feel free|if you (?:have|need|would)|happy to"
    r"|thank)\b[^.!?\n]*+[.!?]*+)+\s*$",
    re.I,
)
"""What chat models say after their answer: "Let me know if you have questions!"."""
_THERE_ARE = re.compile(
    r"\bthere (?:is|are|were) (?:exactly |only |just |a total of )?(?P<number>[0-9][0-9,]*) [a-z]", re.I
)
_CHOICE_AT_END = re.compile(
    r"\b(?:is|it['’]?s|choose|pick|select|option|choice)\s+(?:(?:option|choice)\s+)?\(?(?P<letter>[A-J])\)?[.!*\s]*$"
)
_CHOICE_FIRST = re.compile(r"\(?(?P<letter>[A-HJ])[).:]\s+[^\n$\\]{1,200}")
_CLAUSE_BREAK = re.compile(r"[,;]\s+|\b(?:so|thus|therefore|hence)\b", re.I)
_SENTENCE_BREAK = re.compile(r"(?<=[.!?])(?:\$\$?|\\[)\]])?[\s*]+|\n+")
# What may separate the boxes of one list: punctuation, "and" or "or", and up to three other words.
_SEPARATION = re.compile(r"(?:[\s$.,;:*+()]|\\[()\[\],;! ]|\\text\s*\{|[{}]|\\q?quad)*", re.S)
_EITHER = re.compile(r"\b(?:either|maybe|perhaps|possibly|might|could|not sure)\b", re.I)
"""A word that makes two boxes alternatives. Without it the last box counts: solutions of MATH box `$-2$ and $1$`."""
_WORD = re.compile(r"[A-Za-z]+")


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
        said = find_final_answer(text, boxes[-1].end)
        return Stated(said, Place.ANNOUNCED, steps=steps) if said else _from_boxes(text, boxes, is_list, steps)
    if tag:
        if announced := find_announced(tag):
            return announced._replace(place=Place.TAG, steps=steps)
        return Stated(tag.strip()[: MAX_ANSWER_CHARACTERS + 1], Place.TAG, steps=steps)
    for find in (find_announced, find_marked, find_concluded):
        if (found := find(text)) is not None:
            return found._replace(steps=steps)
    return Stated(None, Place.NOWHERE, Reason.NO_ANSWER, steps)


def _outside(text: str, boxes: list[Box]) -> list[str]:
    """Return the parts of a text outside boxes."""
    bounds = [0, *(bound for box in boxes for bound in (box.start, box.end)), len(text)]
    return [text[start:end] for start, end in zip(bounds[::2], bounds[1::2], strict=True)]


def find_concluded(text: str) -> Stated | None:
    """Return what the end of a text concludes, such as `Therefore $x = 4$.`; None if it concludes nothing.

    A sentence that is cut off, hedges, or only mentions a number concludes nothing. A whole text of one formula or word
    is the answer.
    """
    tail = text[-TAIL_CHARACTERS:].strip()
    tail = _CLOSING.sub("", tail) or tail
    if not tail:
        return None
    if tail == text.strip() and len(tail) <= 200 and _is_bare(tail):
        return _concluding_choice(tail) or Stated(without_delimiters(tail), Place.WHOLE_TEXT)
    return _concluding_formula(tail) or _concluding_number(tail) or _concluding_choice(tail)


def _concluding_formula(tail: str) -> Stated | None:
    formulas = list(FORMULA.finditer(tail))
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
    content = formula_content(last)
    return Stated(f"{content} {unit['unit']}" if unit else content, Place.FORMULA)


def _concluding_number(tail: str) -> Stated | None:
    sentence = _SENTENCE_BREAK.split(tail)[-1]
    number = _NUMBER_AT_END.search(sentence)
    if _HEDGE.search(sentence):
        return None
    if not number:
        counted = _THERE_ARE.search(sentence) if _CONCLUSION.match(sentence) and sentence.endswith((".", "!")) else None
        return Stated(counted["number"], Place.LAST_NUMBER) if counted else None
    lead = sentence[: number.start()]
    is_whole = re.fullmatch(r"\s*(?:(?:it is|just|about|approximately|so)\s*)*", lead, re.I)
    is_complete = sentence.rstrip('*" ').endswith((".", "!")) or sentence.endswith("**")
    if is_whole or (is_complete and _CONCLUSION.match(lead) and _LEADS_TO_VALUE.search(lead)):
        return Stated(number["number"].strip(), Place.LAST_NUMBER)
    return None


def _concluding_choice(tail: str) -> Stated | None:
    """Return the letter that a last clause chooses (`therefore I think it's B`), or that a short text begins with."""
    if first := _CHOICE_FIRST.fullmatch(tail):
        return Stated(first["letter"], Place.OPTION)
    sentence = _SENTENCE_BREAK.split(tail.rstrip())[-1]
    clause = _CLAUSE_BREAK.split(sentence)[-1]
    chosen = None if _HEDGE.search(clause) else _CHOICE_AT_END.search(clause)
    return Stated(chosen["letter"], Place.OPTION) if chosen else None


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


def _is_bare(text: str) -> bool:
    """Return whether a text is a formula, a number with a unit, or at most two words, rather than a sentence."""
    if FORMULA.fullmatch(text.rstrip(". ")):
        return True
    if "$" in text.strip("$") or "\n" in text or _HEDGE.search(text):
        return False
    plain = re.sub(r"\\text\s*\{[^{}]*\}|\\[A-Za-z]+", " ", text)
    words = re.findall(r"[^\W\d_]{2,}", plain)
    return not words or (len(words) <= 2 and (not re.search("[0-9]", plain) or bool(re.match(r"[-+$]*[0-9]", plain))))
