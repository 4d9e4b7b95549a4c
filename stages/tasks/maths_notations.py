r"""Verdicts on numbers in a notation of their own: `101_2`, `8:34 \text{ p.m.}`, `3:4`, `3,14`.

Each comparison takes a normalized answer and a normalized reference, and returns True (equal), False (different) or
None (the texts are in another notation).
"""

from __future__ import annotations

import re
from fractions import Fraction

from stages.tasks.maths_normalization import compact
from stages.tasks.numbers import read_decimal_comma, read_exact_number

_BASE = re.compile(
    r"\(?(?P<digits>-?[0-9A-Fa-f]+)\)?_(?:(?P<base>[0-9])|\{\s*(?:\\text\s*\{)?(?P<long>\w+)\s*\}?\s*\})"
)
_BASES = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_TIME = re.compile(r"(?P<hour>[0-9]{1,2})\s*:\s*(?P<minute>[0-9]{2})\s*(?:\{?\s*(?P<half>[ap])\.?\s*m\.?\s*\}?)?", re.I)
_RATIO = re.compile(r"[^:=<>]+(?::[^:=<>]+){1,7}")


def compare_in_base(answer: str, reference: str) -> bool | None:
    """Compare numbers in a base, such as `101_2`: by digits, and by base if both name one."""
    left, right = _BASE.fullmatch(answer), _BASE.fullmatch(reference)
    if not left and not right:
        return None
    named = [match["base"] or match["long"] for match in (left, right) if match]
    bases = {str(_BASES.index(name) + 2) if name in _BASES else name for name in named}
    return len(bases) == 1 and (left["digits"] if left else answer) == (right["digits"] if right else reference)


def compare_times(answer: str, reference: str) -> bool | None:
    """Compare times of day in any notation of a.m. and p.m., or of 24 hours; None unless one of them says which half.

    The answer may say the half of the day where the reference does not.
    """
    left, right = (_TIME.fullmatch(re.sub(r"\\text\s*", "", text)) for text in (answer, reference))
    if not left or not right:
        return None
    stated, expected = _minutes(left), _minutes(right)
    if stated is None:
        return None
    if expected is None:
        return compact(left["hour"] + left["minute"]) == compact(right["hour"] + right["minute"])
    return stated == expected


def _minutes(time: re.Match[str]) -> int | None:
    """Return the minutes since midnight; None if the half of the day is unknown."""
    hour, minute, half = int(time["hour"]), int(time["minute"]), (time["half"] or "").lower()
    if not half:
        return 60 * hour + minute if hour > 12 else None
    return 60 * (hour % 12 + 12 * (half == "p")) + minute


def compare_ratios(answer: str, reference: str) -> bool | None:
    """Compare ratios of numbers: `2:3:4` equals `4:6:8`."""
    left, right = _terms(answer), _terms(reference)
    if left is None or right is None:
        return None
    if len(left) != len(right):
        return False
    return all(a * right[0] == b * left[0] for a, b in zip(left, right, strict=True))


def _terms(text: str) -> list[Fraction] | None:
    numbers = [read_exact_number(term.strip()) for term in text.split(":")] if _RATIO.fullmatch(text) else []
    values = [number.value for number in numbers if number and not number.percent]
    return values if values and len(values) == len(numbers) and all(values) else None


def compare_decimal_comma(answer: str, reference: str) -> bool | None:
    """Return True if an answer with a decimal comma is the reference, which is not an integer: `3,14` for 3.14.

    Any other text with a comma is a list, or has thousands.
    """
    expected = read_exact_number(reference)
    value = read_decimal_comma(answer)
    if expected is None or value is None or (expected.value.denominator == 1 and "." not in answer):
        return None
    return True if value == expected.value else None
