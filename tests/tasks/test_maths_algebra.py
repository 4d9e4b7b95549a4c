"""Equality by algebra, called in this process."""

from __future__ import annotations

import pytest

from stages.tasks.maths_algebra import compare_by_algebra


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        (r"\sin^2 x", r"1-\cos^2 x", True),
        (r"\sin^2 x", r"1+\cos^2 x", False),
        (r"10^{\frac{\sqrt{13}-5}{6}}", r"10^{\frac{-5+\sqrt{13}}{6}}", True),
        (r"\frac{1}{2009!}", r"\frac{1}{2004!}", False),
        (r"\frac{1}{\sqrt2},\log_2 8", r"3,\frac{\sqrt2}{2}", True),
        (r"\frac{1}{\sqrt2},\log_2 8", r"3,\frac{\sqrt2}{3}", False),
    ],
)
def test_expressions_and_lists_are_compared(answer: str, reference: str, expected: bool):
    assert compare_by_algebra(answer, reference) is expected


def test_what_the_parser_skips_makes_no_answer_right():
    """It reads the last of these equations only, so the change in the first would pass."""
    rest = "\ny_{2}=y_{1} \\ln x+x^{3}"
    assert compare_by_algebra("y_{1}=x^{2}(1+x)^{3}" + rest, "y_{1}=x^{2}(1-x)^{3}" + rest) is False
