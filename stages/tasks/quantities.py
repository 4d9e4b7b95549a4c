r"""Split an answer into its value and the meaning of the words beside it: `30 \text{ cm}` → `30` and a length.

The text is normalized (`maths_normalization`). `read_quantity` is the only place that decides which words beside a
number are dropped, which are compared, and which make it no value; docs/tasks.md states the policy.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from stages.tasks.number_words import MULTIPLIERS, read_number_words
from stages.tasks.numbers import format_number, read_exact_number
from stages.tasks.units import CHANGING_WORDS, GLUED_UNITS, NO_UNIT, Unit, compare_units, parse_unit

_TEXT = r"\\text\s*\{[^{}]*\}"
_POWER = r"\^\s*(?:\{\s*-?[1-9]\s*\}|[1-9])"
_AFTER_A_TERM = r"(?<=[^\s{(\[,=<>+*/^\\-])"
"""A unit needs a quantity before it: `cm` alone is a product of unknowns."""
_TEXT_UNIT = re.compile(
    rf"{_AFTER_A_TERM}\s*(?P<unit>(?:{_TEXT}|\\frac\s*\{{\s*{_TEXT}\s*\}}\s*\{{\s*{_TEXT}\s*(?:{_POWER})?\s*\}})"
    rf"(?:{_TEXT}|{_POWER}|/|\\cdot(?![A-Za-z])|\s)*)$"
)
_PLAIN_UNIT = re.compile(
    rf"(?<=[0-9}})%])(?P<unit>"
    rf"(?:\s*(?:{GLUED_UNITS})(?![A-Za-z])|\s+[A-Za-z]{{2,}}|(?<=[0-9]) [mgshLNJWKVAC](?![A-Za-z]))\.?"
    rf"(?:\s+[A-Za-z'’-]+|\s*/\s*[A-Za-z]+|\s*{_POWER})*)\.?$"
)
_DEGREES = re.compile(
    rf"{_AFTER_A_TERM}\s*\^\s*\\circ\s*(?:\\text\s*\{{\s*)?(?P<scale>[CF]|[Cc]elsius|[Ff]ahrenheit)?\s*\}}?$"
)
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_SEPARATORS = re.compile(r"\s*(?:and|or|,|;|(?i:[ap])\.?\s?(?i:m)\.?|if|for|where|when)\s*")
_NUMBER = r"[0-9]+(?:\.[0-9]+)?(?: ?[0-9]+/[0-9]+)?"
_COMPOUND = re.compile(rf"-?(?:{_NUMBER}\s*[A-Za-z]+\.?\s*(?:,\s*)?(?:and\s+)?){{2,4}}")
_COMPOUND_PART = re.compile(rf"({_NUMBER})\s*([A-Za-z]+)")
_WORDY = re.compile(r"\s*(?:\\text\s*\{)?\s*(?P<words>[A-Za-z0-9.,'’\s-]*[A-Za-z][A-Za-z0-9.,'’\s-]*)\}?\s*")
_MAX_CHARACTERS = 400
_IN_FORMULAS = frozenset({"and", "or", "if", "to", "in", "by", "pi", "sqrt", "sin", "cos", "tan", "log", "ln", "mod"})
NOT_A_VALUE_WORDS = CHANGING_WORDS - _IN_FORMULAS
"""Words that show that a text is not a value, wherever they are in it."""


class Quantity(NamedTuple):
    """A value and its unit.

    Attributes:
      body: the value as normalized text, without its unit.
      unit: what the words beside it say.
      is_compound: whether several units were added up, as in `5 hours 30 minutes`; then the unit is never dropped.
    """

    body: str
    unit: Unit
    is_compound: bool = False


@lru_cache(maxsize=16_384)
def read_quantity(text: str) -> Quantity | None:
    """Return the value and the unit of a normalized answer; None if its words change the value (`5 is not a root`).

    A text without words beside its value is returned as it is.
    """
    if len(text) > _MAX_CHARACTERS:
        return Quantity(text, NO_UNIT)
    if compound := _read_compound(text):
        return compound
    if words := _read_words(text):
        return words
    if not _TRIGONOMETRY.search(text) and (degrees := _DEGREES.search(text)):  # \sin 30° differs from \sin 30
        scale = (degrees["scale"] or "").upper()[:1]
        unit = parse_unit({"C": "celsius", "F": "fahrenheit"}.get(scale, "degree"))
        assert unit is not None
        return Quantity(text[: degrees.start()].strip(), unit)
    match = _TEXT_UNIT.search(text)
    if match and all(_SEPARATORS.fullmatch(one[6:-1]) for one in re.findall(_TEXT, match["unit"])):
        return Quantity(text, NO_UNIT)
    match = match or _plain_unit(text)
    if not match:
        return Quantity(text, NO_UNIT)
    unit = parse_unit(_as_words(match["unit"]))
    body = text[: match.start("unit")].strip()
    return None if unit is None else Quantity(body, unit)


def compare_quantities(answer: Quantity, reference: Quantity) -> str | None:
    """Return the answer's value in the unit of the reference; None if the units exclude each other."""
    if _is_in_degrees(answer) and _is_in_radians(reference):
        return rf"\frac{{\pi}}{{180}}\cdot({answer.body})"
    if _is_in_radians(answer) and _is_in_degrees(reference):
        return rf"\frac{{180}}{{\pi}}\cdot({answer.body})"
    if answer.is_compound != reference.is_compound and not (answer.unit.is_named and reference.unit.is_named):
        return None
    factor = compare_units(answer.unit, reference.unit)
    return None if factor is None else scale(answer.body, factor)


def _is_in_degrees(quantity: Quantity) -> bool:
    return quantity.unit.dimension == (("degree", 1),)


def _is_in_radians(quantity: Quantity) -> bool:
    """Return whether a quantity is an angle in radians: it says so, or is a multiple of π without a unit."""
    return quantity.unit.dimension == (("radian", 1),) or (r"\pi" in quantity.body and not quantity.unit.is_named)


def scale(body: str, factor: Fraction) -> str:
    """Return a value times a factor."""
    if factor == 1:
        return body
    if number := read_exact_number(body):
        return format_number(number.value * factor) + "%" * number.percent
    return rf"\frac{{{factor.numerator}}}{{{factor.denominator}}}\cdot({body})"


def _plain_unit(text: str) -> re.Match[str] | None:
    """Return the match of words after a number, unless they may be a product of unknowns, as in `5 ab`."""
    match = _PLAIN_UNIT.search(text)
    if not match:
        return None
    words = re.findall(r"[A-Za-z]+", match["unit"])
    if len(words) > 1 and all(len(word) == 1 for word in words) and not re.search(r"[/-]", match["unit"]):
        return None  # 12 m^2 n
    first = words[0]
    unit = parse_unit(first)
    is_known = (unit is not None and bool(unit.dimension)) or first.lower() in (*MULTIPLIERS, "per")
    return match if is_known or len(first) > 3 or re.fullmatch(GLUED_UNITS, first) or unit is None else None


def _read_compound(text: str) -> Quantity | None:
    """Return the sum of quantities of one dimension (`5 hours 30 minutes`); None for any other text."""
    if text[:1] not in "-0123456789" or not re.search("[A-Za-z]", text):
        return None
    plain = _as_words(text)
    if not _COMPOUND.fullmatch(plain.strip()):
        return None
    total, dimensions = Fraction(0), set[tuple[tuple[str, int], ...]]()
    for number, word in _COMPOUND_PART.findall(plain):
        unit, value = parse_unit(word), read_exact_number(number)
        if unit is None or not unit.dimension or value is None:
            return None
        total += value.value * unit.size
        dimensions.add(unit.dimension)
    if len(dimensions) != 1:
        return None
    dimension = dimensions.pop()
    words = frozenset(base for base, _ in dimension)
    sign = -1 if text.startswith("-") else 1
    return Quantity(format_number(sign * total), Unit(dimension, Fraction(1), words, Fraction(1)), True)


def _read_words(text: str) -> Quantity | None:
    """Return a number in words and the unit after it (`half a dozen eggs`); None for any other text."""
    match = _WORDY.fullmatch(text)
    words = match["words"].split() if match else []
    for length in range(min(len(words), 8), 0, -1):
        value = read_number_words(" ".join(words[:length]))
        if value is not None:
            unit = parse_unit(" ".join(words[length:]))
            return None if unit is None or unit.scale != 1 else Quantity(format_number(value), unit)
    return None


def _as_words(text: str) -> str:
    """Return text with the content of its `\\text{…}` as plain words, and fractions of them with a slash."""
    text = re.sub(rf"\\frac\s*\{{\s*({_TEXT})\s*\}}\s*\{{\s*({_TEXT}(?:\s*{_POWER})?)\s*\}}", r"\1/\2", text)
    return re.sub(r"\\cdot(?![A-Za-z])", " ", re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text))
