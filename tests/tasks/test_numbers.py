"""Numbers read from text: exact, and in one canonical form."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.tasks.numbers import format_number, read_last_number, read_leading_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (" 18", "18"),
        ("18.", "18"),
        ("18.0", "18"),
        ("18.50", "18.5"),
        ("018", "18"),
        ("$1,018 dollars", "1018"),
        (": 18 eggs", "18"),
        ("18%", "18"),
        ("**18**", "18"),
        (r"\$18", "18"),
        ("-3", "-3"),
        ("-$3", "-3"),
        ("$-3", "-3"),
        ("−3", "-3"),
        ("-0", "0"),
        (".5", "0.5"),
        ("1" * 150, "1" * 150),
        ("", None),
        ("eggs 18", None),
        ("\n18", None),
        ("36/2", "18"),
        ("1/3", "1/3"),
        ("36/0", None),
        ("4/5/6", None),
        ("5 - 3", None),
        ("18e5", None),
        ("1.5.2", None),
        ("1,2", None),
        ("--3", None),
        ("- -3", None),
        ("NaN", None),
        ("١٨", None),
    ],
)
def test_a_leading_number_is_read_in_canonical_form(text: str, number: str | None):
    assert read_leading_number(text) == number


@given(st.text(alphabet="0123456789.,-+$ \t/eE%", max_size=300))
def test_any_text_can_be_read(text: str):
    number = read_leading_number(text)
    assert number is None or read_leading_number(number) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("So she makes $18 every day.", "18"),
        ("18 dollars in 7 days.", "7"),
        ("it is 18/2", "9"),
        ("it is -3.", "-3"),
        ("5-3", "3"),
        ("80 − 50 = $30", "30"),
        ("A: 35,750", "35750"),
        ("room B2", None),
        ("no idea", None),
    ],
)
def test_the_last_number_is_read_with_its_sign(text: str, number: str | None):
    assert read_last_number(text) == number


@given(st.fractions(max_denominator=10**6))
def test_a_formatted_number_is_read_back_unchanged(value: Fraction):
    assert Fraction(format_number(value)) == value
    assert read_leading_number(format_number(value)) == format_number(value)
