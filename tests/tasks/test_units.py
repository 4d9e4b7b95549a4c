"""Units and other words beside a number."""

from __future__ import annotations

from fractions import Fraction

import pytest

from stages.tasks.units import compare_units, parse_unit


def factor(answer: str, reference: str) -> Fraction | None:
    left, right = parse_unit(answer), parse_unit(reference)
    assert left is not None
    assert right is not None
    return compare_units(left, right)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("cm", "centimeters", 1),
        ("km", "m", 1000),
        ("minutes", "hours", Fraction(1, 60)),
        ("cents", "dollars", Fraction(1, 100)),
        ("square inches", "in^2", 1),
        ("ft^{2}", "in^2", 144),
        ("mph", "miles per hour", 1),
        ("m/s", "meters per second", 1),
        ("weeks", "days", 7),
        ("", "hours", 1),
        ("hours", "", 1),
        ("units", "cm", 1),
        ("square units", "cm^2", 1),
        ("degrees", "degrees Celsius", 1),
        ("marbles", "blue marbles", 1),
        ("million dollars", "dollars", 10**6),
        ("dozen eggs", "eggs", 12),
        ("years old", "years", 1),
    ],
)
def test_units_are_converted_and_dropped_on_one_side(answer: str, reference: str, expected: Fraction):
    assert factor(answer, reference) == expected


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("cm", "cm^2"),
        ("cm", "grams"),
        ("days", "months"),
        ("fahrenheit", "celsius"),
        ("west", "east"),
        ("increase", "decrease"),
        ("apples", "pears"),
        ("hours", "apples"),
        ("degrees", "radians"),
    ],
)
def test_other_units_and_nouns_exclude_each_other(answer: str, reference: str):
    assert factor(answer, reference) is None
    assert factor(reference, answer) is None


@pytest.mark.parametrize(
    "text",
    [
        "is not a root",
        "or more",
        "at least",
        "cannot be",
        "times as many",
        "squared",
        "apples and 4 pears",
        "dollars million",
    ],
)
def test_words_that_change_a_value_are_not_a_unit(text: str):
    assert parse_unit(text) is None
