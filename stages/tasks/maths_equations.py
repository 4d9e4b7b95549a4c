r"""Verdicts on equations without algebra: as equations they are equal if their sides differ by a constant factor.

    compare_equations("25=x^2+y^2", "x^2+y^2=25")     # True
    compare_equations("36=x^2+y^2", "x^2+y^2=25")     # False

All functions work on normalized text (`maths_normalization`).
"""

from __future__ import annotations

import re
from fractions import Fraction

from stages.tasks.maths_normalization import NAME
from stages.tasks.maths_values import evaluate
from stages.tasks.numbers import read_exact_number

_OTHER_RELATION = re.compile(r"[<>,;]|\\(?:le|ge|ne|in|cup|cap|pm|text|begin|equiv)(?![A-Za-z])")
_BRACKET_OR_SIGN = re.compile(r"[()\[\]{}=]")
_UNKNOWN = re.compile(r"(?<![\\A-Za-z])[A-Za-z](?![A-Za-z])")
_DEFINED = re.compile(NAME)
_INEQUALITY = re.compile(r"\s*([<>]|\\(?:le|ge)(?![A-Za-z]))\s*")
_PLACES = 10**9
"""Approximate ratios that differ by more than one part in this many are different."""
_POINTS = 3


def sides(text: str) -> list[str]:
    """Return the sides of an equation or of a chain of equations; one item for any other text."""
    if "=" not in text or _OTHER_RELATION.search(text):
        return [text]
    found, depth, start = [], 0, 0
    for match in _BRACKET_OR_SIGN.finditer(text):
        if match[0] != "=":
            depth += 1 if match[0] in "([{" else -1
        elif depth == 0:
            found.append(text[start : match.start()].strip())
            start = match.end()
    return [*found, text[start:].strip()]


def compare_equations(answer: str, reference: str) -> bool | None:
    """Return whether two equations, or an equation and a value, are equal; None if neither is one or it is undecided.

    An answer may end in the value of the reference (`2+2=4` for 4, `x=2+3=5` for 5). A reference that is an equation
    about unknowns is equal to no value.
    """
    stated, expected = sides(answer), sides(reference)
    if len(stated) == 1 and len(expected) == 1:
        return None
    if not all(stated) or not all(expected):
        return False
    if len(expected) == 2 and len(stated) == 2:
        return _compare_two(stated, expected)
    return None


def compare_inequalities(answer: str, reference: str) -> bool | None:
    """Return True if two inequalities differ by a positive constant factor: `2x>6` and `3<x`; None otherwise."""
    stated, expected = _as_less(answer), _as_less(reference)
    if stated is None or expected is None or stated[0] != expected[0]:
        return None
    ratios = {_ratio(stated[1], expected[1], point) for point in range(_POINTS)}
    ratio = ratios.pop()
    return True if not ratios and isinstance(ratio, Fraction) and ratio > 0 else None


def _as_less(text: str) -> tuple[bool, list[str]] | None:
    """Return whether an inequality is strict, and its sides, the smaller one first; None for any other text."""
    terms = _INEQUALITY.split(text)
    if len(terms) != 3 or not all(terms) or "=" in text:
        return None
    is_less = terms[1] in ("<", r"\le")
    return terms[1] in "<>", [terms[0], terms[2]] if is_less else [terms[2], terms[0]]


def _ratio(stated: list[str], expected: list[str], point: int) -> Fraction | None:
    first, second = _difference(stated, point), _difference(expected, point)
    return first / second if isinstance(first, Fraction) and isinstance(second, Fraction) and second else None


def value_of_chain(text: str, *, may_have_unknowns: bool) -> str | None:
    """Return the last side of an equation that states a value: its other sides have no unknowns, or it is a chain.

    `2+2=4` → `4`, `x=2+3=5` → `5`. Return None for an equation about unknowns and for any text without `=`.

    Args:
      text: the equation.
      may_have_unknowns: whether the other sides may have unknowns: an answer may state `x^2+y^2=25` for 25.
    """
    terms = sides(text)
    if not may_have_unknowns and len(terms) == 2 and _UNKNOWN.search(terms[0]):
        return None
    if len(terms) > 2 and all(_DEFINED.fullmatch(term) for term in terms[:-1]):
        return terms[-1]  # z = f(x, y) = x + y
    if len(terms) < 2 or not all(terms) or _UNKNOWN.search(terms[-1]):
        return None
    return None if _is_false(terms[-2], terms[-1]) else terms[-1]


def _is_false(left: str, right: str) -> bool:
    """Return whether an equation of two exact numbers is false: `1+2=4`; not `\frac{10}{3}=3.33`, which is rounded."""
    stated = read_exact_number(right)
    a, b = read_exact_number(left), stated
    if a and b and a.percent != b.percent:
        return a.value not in (b.value / 100, b.value * 100)
    first, second = (read.value if read else evaluate(text) for read, text in ((a, left), (b, right)))
    if not isinstance(first, Fraction) or not isinstance(second, Fraction) or _UNKNOWN.search(left):
        return False
    decimals = len(right.rpartition(".")[2]) if stated and stated.decimal else 0
    return abs(first - second) * 10**decimals >= 1 if decimals else first != second


def _compare_two(stated: list[str], expected: list[str]) -> bool | None:
    """Compare two equations by the ratio of their differences, left side minus right side, at random points."""
    ratio: Fraction | complex | None = None
    is_exact = True
    for point in range(_POINTS):
        first, second = _difference(stated, point), _difference(expected, point)
        if first is None or second is None:
            return None
        if not first or not second:
            return None if first == second else False
        if isinstance(first, Fraction) and isinstance(second, Fraction):
            found: Fraction | complex = first / second
        else:
            is_exact = False
            found = complex(first) / complex(second)
        if ratio is not None and abs(found - ratio) * _PLACES > (0 if is_exact else abs(ratio)):
            return False
        ratio = found
    return True if is_exact else None


def _difference(terms: list[str], point: int) -> Fraction | complex | None:
    left, right = evaluate(terms[0], point), evaluate(terms[1], point)
    if left is None or right is None:
        return None
    return (
        left - right if isinstance(left, Fraction) and isinstance(right, Fraction) else complex(left) - complex(right)
    )
