"""Values of formulas, exact and approximate."""

from __future__ import annotations

import cmath
from fractions import Fraction

import pytest

from stages.tasks.maths_values import approximate, compare_exactly, evaluate


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"\frac12", Fraction(1, 2)),
        (r"\frac{1.5}{2}", Fraction(3, 4)),
        ("2^{10}", 1024),
        (r"3\cdot -2", -6),
        ("5!", 120),
        (r"\sqrt{\frac{9}{4}}", Fraction(3, 2)),
        (r"\sqrt[3]{8}", 2),
        (r"9 \times 2", 18),
    ],
)
def test_rational_formulas_have_exact_values(text: str, value: Fraction):
    assert evaluate(text) == value
    assert isinstance(evaluate(text), Fraction)


@pytest.mark.parametrize(
    ("text", "value"),
    [(r"\sqrt2", cmath.sqrt(2)), (r"\pi", cmath.pi), ("e^2", cmath.e**2), (r"\sin^2 1", cmath.sin(1) ** 2), ("2i", 2j)],
)
def test_other_formulas_have_approximate_values(text: str, value: complex):
    found = approximate(text)
    assert found is not None
    assert abs(found - value) < 1e-12


@pytest.mark.parametrize(
    "text", ["1/2x", "2 3", r"1\frac12", r"\frac.1", ".", "", "9^{9^{9}}", "1/0", r"\log_2 8", "(" * 50]
)
def test_a_formula_with_two_readings_or_none_has_no_value(text: str):
    assert evaluate(text) is None


def test_formulas_are_compared_at_several_points():
    assert compare_exactly("(x-2)(x+2)", "x^2-4") is True
    assert compare_exactly("x^2+1", "x^2-1") is False
    assert compare_exactly("x", "X") is False
    assert compare_exactly("x_1", "x_{1}") is True
    assert compare_exactly(r"\sqrt2", r"\sqrt2") is None
