r"""Verdicts on responses whose answer is a number (GSM8K).

    verify(r"so \boxed{\frac{36}{2}}", "18").reward     # 1.0

The answer is what the response states after its last `####`, in its last box, in `<answer>` tags or after "the answer
is"; only without any of these it is the last number of the text, as in GSM8K's own evaluation. A statement is read as
the grader of mathematics reads it (`maths_shortcuts`), but without algebra.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from stages.tasks.answers import find_answer
from stages.tasks.boxes import after_thinking, find_boxes, is_blank
from stages.tasks.maths_answers import canonical_form
from stages.tasks.maths_normalization import normalize
from stages.tasks.maths_shortcuts import compare
from stages.tasks.number_words import MULTIPLIERS
from stages.tasks.numbers import ascii_digits, find_last_number, read_leading_number
from stages.tasks.statements import ANSWER_MARK, Stated, find_announced, find_marked, value_in_sentence
from stages.tasks.verdicts import Place, Reason, Step, Verdict, judge, no_answer

_CONTEXT_CHARACTERS = 60
_HEDGED_BEFORE = re.compile(
    r"\b(?:or|either|not|than|between|least|most|over|under|above|below)\s+(?:\w+\s+){0,1}\$?$|n't\s+\$?$", re.I
)
"""Words before the last number of a text that show that it is not the answer."""
_MULTIPLIER_AFTER = re.compile(rf"\s*(?:{'|'.join(MULTIPLIERS)})s?\b", re.I)


def verify_all(responses: Sequence[str], references: Sequence[str]) -> list[Verdict]:
    """Return a verdict for each response."""
    return [verify(*pair) for pair in zip(responses, references, strict=True)]


def verify(response: str, reference: str) -> Verdict:
    """Compare the number that a response states with its reference."""
    stated = _find(after_thinking(ascii_digits(response)))
    if stated.text is None:
        return no_answer(*stated.steps) if stated.reason is Reason.NO_ANSWER else _without_answer(stated)
    gold = read_leading_number(ascii_digits(reference)) or reference
    steps = (*stated.steps, Step("read the answer", stated.text))
    if stated.reason is not Reason.EQUAL:
        return Verdict(canonical_form(stated.text), 0.0, stated.reason, stated.place, stated.text, steps)
    compared = compare(normalize(stated.text), gold)
    answer = canonical_form(stated.text)
    if not compared.is_equal and (value := value_in_sentence(stated.text)) is not None:
        compared, steps = compare(normalize(value), gold), (*steps, Step("read the value in the sentence", value))
        answer = canonical_form(value)
    steps = (*steps, Step("compare", compared.answer), Step("with the reference", compared.reference))
    if compared.is_equal:
        return judge(gold, True, stated.place, stated.text, *steps)
    reason = Reason.DIFFERENT if compared.is_equal is None else compared.reason
    return Verdict(answer or None, 0.0, reason, stated.place, stated.text, steps)


def _find(text: str) -> Stated:
    """Return what a text states after its last mark; in a box there, or else on its line. Without a mark, anywhere."""
    _, mark, tail = text.rpartition(ANSWER_MARK)
    boxes, _ = find_boxes(tail)
    if mark and not any(not is_blank(box.content) for box in boxes):
        marked = find_marked(text)
        if marked is None:
            return Stated(None, Place.NOWHERE, Reason.NO_ANSWER)
        announced = find_announced(marked.text or "")
        return announced._replace(place=Place.MARK) if announced else marked
    stated = find_answer(tail)
    if stated.place in (Place.FORMULA, Place.LAST_NUMBER, Place.NOWHERE) and stated.reason is not Reason.OPEN_BOX:
        return _last_number(tail, stated)
    return stated


def _last_number(text: str, stated: Stated) -> Stated:
    """Return the last number of a text; hedged if "or", "not" or "than" stands before it."""
    found = find_last_number(text)
    if found is None:
        return stated
    start, end, number = found
    if multiplier := _MULTIPLIER_AFTER.match(text, end):
        number += multiplier[0]
    is_hedged = _HEDGED_BEFORE.search(text[max(start - _CONTEXT_CHARACTERS, 0) : start])
    return Stated(number, Place.LAST_NUMBER, Reason.HEDGED if is_hedged else Reason.EQUAL, stated.steps)


def _without_answer(stated: Stated) -> Verdict:
    return Verdict(None, 0.0, stated.reason, stated.place, None, stated.steps)
