"""Numbers written in words."""

from __future__ import annotations

from fractions import Fraction

import pytest

from stages.tasks.number_words import read_number_words


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("five", 5),
        ("Twenty-five", 25),
        ("one hundred and five", 105),
        ("two hundred five thousand and six", 205_006),
        ("half a dozen", 6),
        ("a dozen", 12),
        ("3.5 million", 3_500_000),
        ("1,200 thousand", 1_200_000),
        ("three tenths", Fraction(3, 10)),
        ("a quarter", Fraction(1, 4)),
        ("two and a half", Fraction(5, 2)),
        ("negative five", -5),
        ("minus two thirds", Fraction(-2, 3)),
    ],
)
def test_a_number_in_words_is_read_exactly(text: str, value: Fraction):
    assert read_number_words(text) == value


@pytest.mark.parametrize(
    "text", ["12", "", "five six", "two and three", "third", "million million", "no one", "one-to-one", "five apples"]
)
def test_other_words_are_not_a_number(text: str):
    assert read_number_words(text) is None
