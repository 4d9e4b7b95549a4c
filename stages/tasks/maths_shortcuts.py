"""Verdicts on mathematical answers that need no algebra: by notation, exact numbers, words and approximate values.

Each comparison returns True (equal), False (different) or None (undecided: algebra must compare them).
"""

from __future__ import annotations

import re

from stages.tasks.maths_answers import MAX_ANSWER_CHARACTERS
from stages.tasks.maths_normalization import (
    Collection,
    align,
    compact,
    is_list,
    is_words,
    nesting_depth,
    normalize_words,
    parse_collection,
)
from stages.tasks.maths_values import approximate
from stages.tasks.numbers import read_exact_number

_INVERSE_TOLERANCE = 10**9
"""A decimal equals a number if they differ by at most one part in this many: 0.3333333333 is 1/3, 0.333333 is not."""
_INVERSE_DISTINCTION = 10**6
"""Approximate values that differ by more than one part in this many belong to different answers."""
_DECIMAL = re.compile(r"[0-9]\.[0-9]|(?<![0-9])\.[0-9]")
_MAX_NESTING = 30
"""A deeper nested answer is wrong without being parsed: every reference is far shallower."""
_CHOICE = re.compile(r"\(?(?P<letter>[A-Za-z])(?:[).:](?!.*\([A-Za-z]\))|$)")
_TIME = re.compile(r"(?P<time>[0-9]{1,2}\s*:\s*[0-9]{2})\s*(?:\{?\s*(?P<half>[ap])\.?\s*m\.?\s*\}?)?", re.I)
_BASE = re.compile(
    r"\(?(?P<digits>-?[0-9A-Fa-f]+)\)?_(?:(?P<base>[0-9])|\{\s*(?:\\text\s*\{)?(?P<long>\w+)\s*\}?\s*\})"
)
_BASES = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_INFINITY = re.compile(r"[-+]?\s*\\infty")
_NAME = re.compile(r"\\?[A-Za-z]\w*(?:\{\w+\})?(?:\([A-Za-z]\))?\s*")


def compare_cheaply(answer: str, reference: str) -> bool | None:
    """Return whether an answer is right, or None if only algebra can decide.

    Args:
      answer, reference: as `maths_normalization.align` returns them.
    """
    if not answer or len(answer) > MAX_ANSWER_CHARACTERS:
        return False
    if compact(answer) == compact(reference):
        return True
    if nesting_depth(answer) > _MAX_NESTING:
        return False
    for compare in (_compare_numbers, _compare_in_base, _compare_times, _compare_words, _compare_collections):
        if (verdict := compare(answer, reference)) is not None:
            return verdict
    if reference == "0" and "=" in answer and not _NAME.fullmatch(answer.partition("=")[0]):
        return False  # an equation with the right side 0 does not state that a quantity is 0
    return _compare_values(answer, reference)


def _compare_numbers(answer: str, reference: str) -> bool | None:
    """Compare exact numbers, up to the rounding of a decimal; 50% equals both 50 and 0.5 without a percent sign."""
    left, right = read_exact_number(answer), read_exact_number(reference)
    if not left or not right:
        return None
    a, b = left.value, right.value
    pairs = [(a, b)]
    if left.percent != right.percent:
        pairs.append((a / 100, b) if left.percent else (a, b / 100))
    if left.decimal or right.decimal:
        return any(abs(a - b) * _INVERSE_TOLERANCE <= abs(b) for a, b in pairs)
    return any(a == b for a, b in pairs)


def _compare_values(answer: str, reference: str) -> bool | None:
    """Compare approximate values: different if far apart, equal if close and one of them is a decimal."""
    a, b = approximate(answer), approximate(reference)
    if a is None or b is None:
        return None
    if abs(a - b) > max(abs(a), abs(b)) / _INVERSE_DISTINCTION:
        return False
    if _DECIMAL.search(answer + " " + reference) and abs(a - b) * _INVERSE_TOLERANCE <= abs(b):
        return True
    return None


def _compare_in_base(answer: str, reference: str) -> bool | None:
    """Compare numbers in a base, such as `101_2`: by digits, and by base if both name one."""
    left, right = _BASE.fullmatch(answer), _BASE.fullmatch(reference)
    if not left and not right:
        return None
    named = [match["base"] or match["long"] for match in (left, right) if match]
    bases = {str(_BASES.index(name) + 2) if name in _BASES else name for name in named}
    return len(bases) == 1 and (left["digits"] if left else answer) == (right["digits"] if right else reference)


def _compare_times(answer: str, reference: str) -> bool | None:
    """Compare times of day in any notation of a.m. and p.m.; the answer may state it where the reference does not."""
    left, right = (_TIME.fullmatch(re.sub(r"\\text\s*", "", text)) for text in (answer, reference))
    if not left or not right or not left["half"]:
        return None
    halves = {match["half"].lower() for match in (left, right) if match["half"]}
    return compact(left["time"]) == compact(right["time"]) and len(halves) == 1


def _compare_words(answer: str, reference: str) -> bool | None:
    """Compare words without case and brackets, and a choice by its letter; None if neither side is words alone."""
    if is_words(answer) and read_exact_number(reference) and not re.search("[0-9]", answer):
        return False
    if not is_words(reference) and not (is_words(answer) and re.fullmatch("[A-Za-z][A-Za-z ]+", reference)):
        return None
    stated, expected = normalize_words(answer), normalize_words(reference)
    choice = _CHOICE.match(re.sub(r"\\text\s*|[{}]", "", answer)) if len(expected) == 1 else None
    return stated == expected or bool(choice and choice["letter"].lower() == expected)


def _compare_collections(answer: str, reference: str) -> bool | None:
    """Compare tuples, intervals, sets and lists item by item; bare lists and sets in any order.

    A tuple differs from a bare list.
    """
    left, right = parse_collection(answer), parse_collection(reference)
    if left is None and right is None:
        return None
    if left is None or right is None:
        single, collection = (answer, right) if left is None else (reference, left)
        return False if collection and _is_number_against_several(single, collection) else None
    if {left.brackets, right.brackets} == {"", "()"} and (is_list(answer) or is_list(reference)):
        return False
    if left.brackets != right.brackets:
        return None
    if len(left.items) != len(right.items):
        return False if left.brackets else None
    if left.brackets in ("", r"\{\}"):
        return _compare_in_any_order(left.items, right.items)
    verdicts = [compare_cheaply(*align(a, b)) for a, b in zip(left.items, right.items, strict=True)]
    if False in verdicts:
        return False
    return True if all(verdicts) else None


def _is_number_against_several(single: str, collection: Collection) -> bool:
    """Return whether one side is one number and the other several: no algebra makes them equal."""
    known = all(approximate(item) is not None or _INFINITY.fullmatch(item) for item in collection.items)
    return len(collection.items) > 1 and known and approximate(single) is not None


def _compare_in_any_order(answers: list[str], references: list[str]) -> bool | None:
    """Compare lists of equal length: True if items pair up, False if one answer differs from every reference left."""
    unmatched = list(references)
    for answer in answers:
        verdicts = [compare_cheaply(*align(answer, reference)) for reference in unmatched]
        if True in verdicts:
            unmatched.pop(verdicts.index(True))
        elif all(verdict is False for verdict in verdicts):
            return False
        else:
            return None
    return True
