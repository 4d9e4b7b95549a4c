"""Comparisons that need no algebra, and their reasons."""

from __future__ import annotations

import pytest

from stages.tasks.maths_normalization import normalize
from stages.tasks.maths_shortcuts import compare
from stages.tasks.verdicts import Reason


@pytest.mark.parametrize(
    ("answer", "reference", "reason"),
    [
        ("0.5", r"\frac12", Reason.EQUAL),
        ("(x-2)(x+2)", "x^2-4", Reason.EQUAL),
        ("2,1", "1,2", Reason.EQUAL),
        ("18", "18", Reason.EQUAL),
        ("05", "5", Reason.EQUAL),
        ("6", "5", Reason.DIFFERENT),
        ("-5", "5", Reason.DIFFERENT),
        ("(2,1)", "(1,2)", Reason.DIFFERENT),
        ("(2,3)", r"\{2,3\}", Reason.DIFFERENT),
        ("2147483647.5", "2147483647", Reason.DIFFERENT),
        ("3 4", "34", Reason.DIFFERENT),
        (r"30\text{ minutes}", r"30\text{ hours}", Reason.DIFFERENT_UNIT),
        (r"5\text{ is not a root}", "5", Reason.NOT_A_VALUE),
        (r"\text{at least }5", "5", Reason.NOT_A_VALUE),
        (r"4\text{ or }5", "5", Reason.HEDGED),
        ("", "5", Reason.NO_ANSWER),
        ("1" * 3_000, "5", Reason.TOO_LONG),
    ],
)
def test_a_comparison_has_a_reason(answer: str, reference: str, reason: Reason):
    compared = compare(normalize(answer), normalize(reference))
    assert compared.reason is reason
    assert compared.is_equal is (reason is Reason.EQUAL)


@pytest.mark.parametrize(("answer", "reference"), [(r"\log_2 8", "3"), (r"\frac{1}{\sqrt2}", r"\frac{\sqrt2}{2}")])
def test_what_has_no_exact_value_is_left_to_algebra(answer: str, reference: str):
    assert compare(normalize(answer), normalize(reference)).is_equal is None
