"""Numbers in a base, times of day, ratios and decimal commas."""

from __future__ import annotations

import pytest

from stages.tasks.maths_notations import compare_decimal_comma, compare_in_base, compare_ratios, compare_times


@pytest.mark.parametrize(
    ("answer", "reference", "is_equal"),
    [("101_2", r"101_{\text{two}}", True), ("101", "101_2", True), ("101_3", "101_2", False), ("5", "5", None)],
)
def test_numbers_in_a_base_are_compared_by_digits_and_base(answer: str, reference: str, is_equal: bool | None):
    assert compare_in_base(answer, reference) is is_equal


@pytest.mark.parametrize(
    ("answer", "reference", "is_equal"),
    [
        (r"3:45 \text{ p.m.}", r"3:45 \text{ PM}", True),
        ("15:45", r"3:45 \text{ PM}", True),
        ("12:05 a.m.", "12:05 AM", True),
        ("12:05 a.m.", "12:05 PM", False),
        (r"3:45 \text{ AM}", r"3:45 \text{ PM}", False),
        ("3:45 PM", "3:45", True),
        ("3:45", "3:45 PM", None),
        ("3:4", "3:4", None),
    ],
)
def test_times_of_day_are_compared_with_their_half(answer: str, reference: str, is_equal: bool | None):
    assert compare_times(answer, reference) is is_equal


@pytest.mark.parametrize(
    ("answer", "reference", "is_equal"),
    [
        ("2:3:4", "4:6:8", True),
        ("3:4", "4:3", False),
        ("1:2", "1:2:3", False),
        (r"\frac12:1", "1:2", True),
        ("a:b", "1:2", None),
        ("0:1", "0:2", None),
    ],
)
def test_ratios_are_equal_up_to_a_factor(answer: str, reference: str, is_equal: bool | None):
    assert compare_ratios(answer, reference) is is_equal


@pytest.mark.parametrize(
    ("answer", "reference", "is_equal"),
    [
        ("3,14", "3.14", True),
        ("-0,5", r"-\frac12", True),
        ("1.234,5", "1234.5", True),
        ("1.234.567", "1234567", True),
        ("0,125", "0.125", True),
        ("1,234", "1.234", None),
        ("4,0", "4", None),
        ("12,34", "1234", None),
        ("3,14", "3.15", None),
    ],
)
def test_a_decimal_comma_is_read_where_nothing_else_is_meant(answer: str, reference: str, is_equal: bool | None):
    assert compare_decimal_comma(answer, reference) is is_equal
