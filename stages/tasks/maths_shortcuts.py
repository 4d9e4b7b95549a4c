"""Verdicts on mathematical answers that need no algebra: by notation, units, exact numbers, words and values.

`compare` reads the units and solutions with names, then asks one comparison after the other. Each returns True (equal),
False (different) or None (undecided: the next one, and at last algebra, must decide).
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from stages.tasks.maths_equations import compare_equations, compare_inequalities, sides, value_of_chain
from stages.tasks.maths_normalization import (
    PLAIN_INTEGER,
    Collection,
    align,
    compact,
    is_list,
    is_words,
    nesting_depth,
    normalize_words,
    parse_collection,
    vector_items,
)
from stages.tasks.maths_notations import compare_decimal_comma, compare_in_base, compare_ratios, compare_times
from stages.tasks.maths_solutions import align_solutions, compare_families
from stages.tasks.maths_values import approximate, compare_exactly
from stages.tasks.numbers import ExactNumber, read_exact_number
from stages.tasks.quantities import NOT_A_VALUE_WORDS, Quantity, compare_quantities, read_quantity
from stages.tasks.statements import MAX_ANSWER_CHARACTERS
from stages.tasks.units import singular
from stages.tasks.verdicts import Reason

_INVERSE_TOLERANCE = 10**9
"""A decimal equals a number if they differ by at most one part in this many: 0.3333333333 is 1/3, 0.333333 is not."""
_INVERSE_DISTINCTION = 10**6
"""Approximate values that differ by more than one part in this many belong to different answers."""
_DECIMAL = re.compile(r"[0-9]\.[0-9]|(?<![0-9])\.[0-9]")
_MAX_NESTING = 30
"""A deeper nested answer is wrong without being parsed: every reference is far shallower."""
_CHOICE_LETTER = re.compile(r"\(?(?:\\text\s*\{\s*)?\(?(?P<letter>[A-J])\)?\s*\}?\)?")
_CHOICE = re.compile(r"(?:(?:[Oo]ption|[Cc]hoice)\s+)?\(?(?P<letter>[A-Za-z])(?:[).:](?!.*\([A-Za-z]\))|$)")
_PROSE = re.compile(r"\\text\s*\{([^{}]*[A-Za-z]{2}[^{}]*)\}")
_CONNECTING = re.compile(
    r"\b(?:and|or|if|for|where|when|otherwise|is|an?|any|all|integers?|even|odd|with)\b|[^A-Za-z ]"
)
_HAS_SEPARATE_DIGITS = re.compile(r"(?<![_^0-9])[0-9]+\s+[0-9]")
_INFINITY = re.compile(r"[-+]?\s*\\infty")
_NAME = re.compile(r"\\?[A-Za-z]\w*(?:\{\w+\})?(?:\([A-Za-z]\))?\s*")


class Comparison(NamedTuple):
    """The result of a comparison without algebra.

    Attributes:
      is_equal: None if only algebra can decide.
      reason: why the answer is right or wrong.
      answer, reference: what was compared in the end, aligned and without units.
    """

    is_equal: bool | None
    reason: Reason
    answer: str
    reference: str


def compare(answer: str, reference: str) -> Comparison:
    """Compare a normalized answer with a normalized reference as far as no algebra is needed."""
    if not answer:
        return Comparison(False, Reason.NO_ANSWER, answer, reference)
    if PLAIN_INTEGER.fullmatch(answer) and PLAIN_INTEGER.fullmatch(reference):
        is_equal = answer == reference
        return Comparison(is_equal, Reason.EQUAL if is_equal else Reason.DIFFERENT, answer, reference)
    if len(answer) > MAX_ANSWER_CHARACTERS or nesting_depth(answer) > _MAX_NESTING:
        return Comparison(False, Reason.TOO_LONG, answer[:MAX_ANSWER_CHARACTERS], reference)
    if compact(answer) == compact(reference):
        return Comparison(True, Reason.EQUAL, answer, reference)
    answer, reference = align(*align_solutions(answer, reference))
    stated, expected = read_quantity(answer), read_quantity(reference)
    is_other_unit = False
    if _is_single(answer, stated) and _is_single(reference, expected):
        if stated is None or expected is None:
            is_equal = _compare_words(answer, reference) or False
            return Comparison(is_equal, Reason.EQUAL if is_equal else Reason.NOT_A_VALUE, answer, reference)
        value = compare_quantities(stated, expected)
        if value is None:
            return Comparison(False, Reason.DIFFERENT_UNIT, answer, reference)
        answer, reference = align(value, expected.body)
        is_other_unit = value != stated.body and compact(stated.body) == compact(expected.body)
    is_equal = _compare_values_of(answer, reference)
    reason = Reason.EQUAL if is_equal else Reason.DIFFERENT
    if is_equal is None and _has_other_words(answer, reference):
        is_equal, reason = False, Reason.NOT_A_VALUE
    elif is_equal is False and is_other_unit:
        reason = Reason.DIFFERENT_UNIT
    elif is_equal is False and _is_hedged(answer, reference):
        reason = Reason.HEDGED
    return Comparison(is_equal, reason, answer, reference)


def compare_cheaply(answer: str, reference: str) -> bool | None:
    """Return whether a normalized answer is right, or None if only algebra can decide."""
    return compare(answer, reference).is_equal


def _compare_values_of(answer: str, reference: str) -> bool | None:
    """Ask one comparison after the other, from cheap to expensive."""
    if compact(answer) == compact(reference):
        return True
    for one in (
        _compare_numbers,
        compare_decimal_comma,
        compare_in_base,
        compare_times,
        compare_ratios,
        _compare_words,
        compare_families,
        _compare_unions,
        _compare_collections,
    ):
        if (verdict := one(answer, reference)) is not None:
            return verdict
    for one in (compare_equations, compare_inequalities):
        if (verdict := one(answer, reference)) is not None:
            return verdict
    stated, expected = sides(answer), sides(reference)
    if len(stated) > 1 and len(expected) == 1:
        return _compare_equation_with_value(answer, reference)
    if len(stated) > 2 and len(expected) == 2 and compact(stated[0]) == compact(expected[0]):
        return compare_cheaply(stated[-1], expected[1])  # x=2+3=5 for x=5
    if len(stated) == 1 and len(expected) > 1:
        value = value_of_chain(reference, may_have_unknowns=False)
        return False if value is None else compare_cheaply(answer, value)
    if _HAS_SEPARATE_DIGITS.search(answer) or _HAS_SEPARATE_DIGITS.search(reference):
        return False  # `3 4` is neither 34 nor 12
    return _compare_values(answer, reference)


def _compare_equation_with_value(answer: str, reference: str) -> bool | None:
    value = value_of_chain(answer, may_have_unknowns=True)
    if value is None or (reference == "0" and not _NAME.fullmatch(answer.partition("=")[0])):
        return False  # an equation with the right side 0 does not state that a quantity is 0
    return compare_cheaply(value, reference)


def _compare_numbers(answer: str, reference: str) -> bool | None:
    """Compare exact numbers, up to the rounding of a decimal; 50% equals both 50 and 0.5 without a percent sign."""
    left, right = read_exact_number(answer), read_exact_number(reference)
    if not left or not right:
        return None
    a, b = left.value, right.value
    if a == b or (left.percent != right.percent and (a / 100 == b if left.percent else a == b / 100)):
        return True
    if left.percent != right.percent or left.decimal == right.decimal:
        return False
    return _is_rounding(left, b) or _is_rounding(right, a)


def _is_rounding(decimal: ExactNumber, exact: Fraction) -> bool:
    """Return whether a decimal is the rounding of a number that no decimal states exactly, such as 1/3."""
    below = exact.denominator
    while below % 2 == 0:
        below //= 2
    while below % 5 == 0:
        below //= 5
    return decimal.decimal and below > 1 and abs(decimal.value - exact) * _INVERSE_TOLERANCE <= abs(exact)


def _compare_values(answer: str, reference: str) -> bool | None:
    """Compare values: exactly if both are known so; else different if far apart, and equal if a decimal is close."""
    if (verdict := compare_exactly(answer, reference)) is not None:
        return verdict
    a, b = approximate(answer), approximate(reference)
    if a is None or b is None:
        return None
    if abs(a - b) > max(abs(a), abs(b)) / _INVERSE_DISTINCTION:
        return False
    if _DECIMAL.search(answer + " " + reference) and abs(a - b) * _INVERSE_TOLERANCE <= abs(b):
        return True
    return None


def _is_single(text: str, quantity: Quantity | None) -> bool:
    """Return whether a text states one quantity, although a comma separates thousands or "and" its parts."""
    if not is_list(text):
        return True
    return quantity is not None and (quantity.is_compound or read_exact_number(quantity.body) is not None)


def _has_other_words(answer: str, reference: str) -> bool:
    """Return whether one side has words that the other has not, other than connecting ones such as "and"."""
    stated, expected = (
        _CONNECTING.sub("", " ".join(_PROSE.findall(text))).lower().split() for text in (answer, reference)
    )
    changes = set(re.findall(r"(?<![\\A-Za-z])[A-Za-z']{2,}", answer)) & NOT_A_VALUE_WORDS
    return stated != expected or bool(changes and not re.search(r"\\text", reference))


def _is_hedged(answer: str, reference: str) -> bool:
    """Return whether the answer states several values where the reference has one, this one among them."""
    if not is_list(answer) or is_list(reference):
        return False
    collection = parse_collection(answer)
    items = collection.items if collection and not collection.brackets else []
    return len(items) > 1 and any(compare_cheaply(item, reference) for item in items)


def _compare_words(answer: str, reference: str) -> bool | None:
    """Compare words without case and brackets, and a choice by its letter; None if neither side is words alone."""
    choice = _CHOICE_LETTER.fullmatch(reference)
    if choice and (stated := _CHOICE.match(re.sub(r"\\text\s*|[{}]", "", answer))):
        return stated["letter"] == choice["letter"] or None
    if is_words(answer) and read_exact_number(reference) and not re.search("[0-9]", answer):
        return False
    if not is_words(reference) and not (is_words(answer) and re.fullmatch("[A-Za-z][A-Za-z ]+", reference)):
        return None
    stated, expected = (re.sub(r"[a-z]+", _singular, normalize_words(text)) for text in (answer, reference))
    choice = _CHOICE.match(re.sub(r"\\text\s*|[{}]", "", answer)) if len(expected) == 1 else None
    return stated == expected or bool(choice and choice["letter"].lower() == expected)


def _singular(word: re.Match[str]) -> str:
    return singular(word[0])


def _compare_unions(answer: str, reference: str) -> bool | None:
    """Compare unions of intervals and sets part by part, in any order."""
    left, right = (re.split(r"\\cup(?![A-Za-z])", text) for text in (answer, reference))
    if len(left) != len(right) or len(left) == 1:
        return None  # parts may overlap: [0,1] and [1,2] are [0,2]
    return True if _compare_in_any_order([one.strip() for one in left], [one.strip() for one in right]) else None


def _compare_collections(answer: str, reference: str) -> bool | None:
    """Compare tuples, intervals, sets and lists item by item; bare lists and sets in any order.

    A tuple differs from a bare list.
    """
    left, right = _read_collection(answer), _read_collection(reference)
    if left is None and right is None:
        return None
    if left is None or right is None:
        single, collection = (answer, right) if left is None else (reference, left)
        if collection and collection.brackets == "()" and (items := vector_items(single)):
            return (
                _compare_in_order(items, collection.items)
                if left is None
                else _compare_in_order(collection.items, items)
            )
        return False if collection and _is_number_against_several(single, collection) else None
    if {left.brackets, right.brackets} == {"", "()"} and (is_list(answer) or is_list(reference)):
        return False
    if {left.brackets, right.brackets} == {r"\{\}", "()"}:
        return False
    if left.brackets != right.brackets:
        return None
    if len(left.items) != len(right.items):
        return False if left.brackets or _are_known([*left.items, *right.items]) else None
    if left.brackets in ("", r"\{\}"):
        return _compare_in_any_order(left.items, right.items)
    return _compare_in_order(left.items, right.items)


def _compare_in_order(answers: list[str], references: list[str]) -> bool | None:
    if len(answers) != len(references):
        return False
    verdicts = [compare_cheaply(a, b) for a, b in zip(answers, references, strict=True)]
    return False if False in verdicts else True if all(verdicts) else None


def _is_number_against_several(single: str, collection: Collection) -> bool:
    """Return whether one side is one number and the other several: no algebra makes them equal."""
    is_number = approximate(single) is not None or read_exact_number(single) is not None
    return len(collection.items) > 1 and _are_known(collection.items) and is_number


def _are_known(items: list[str]) -> bool:
    return all(approximate(item) is not None or _INFINITY.fullmatch(item) for item in items)


def _read_collection(text: str) -> Collection | None:
    """Return a collection; None for a number, whose commas separate thousands. A minus sign negates a tuple's items."""
    if read_exact_number(text):
        return None
    if text.startswith("-") and (negated := parse_collection(text[1:].strip())) and negated.brackets == "()":
        return Collection("()", [f"-({item})" for item in negated.items])
    return parse_collection(text)


def _compare_in_any_order(answers: list[str], references: list[str]) -> bool | None:
    """Compare lists of equal length: True if items pair up, False if one answer differs from every reference left."""
    unmatched = list(references)
    for answer in answers:
        verdicts = [compare_cheaply(answer, reference) for reference in unmatched]
        if True in verdicts:
            unmatched.pop(verdicts.index(True))
        elif all(verdict is False for verdict in verdicts):
            return False
        else:
            return None
    return True
