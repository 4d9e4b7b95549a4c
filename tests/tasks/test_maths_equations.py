"""Equations compared by their sides."""

from __future__ import annotations

import pytest

from stages.tasks.maths_equations import compare_equations, sides, value_of_chain


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("25=x^2+y^2", "x^2+y^2=25", True),
        ("36=x^2+y^2", "x^2+y^2=25", False),
        ("2x+2y=6", "x+y=3", True),
        ("0=3x+4y-5", "3x+4y-5=0", True),
        ("y=3x+1", "y=3x-1", False),
        ("x^2=1000000000001", "x^2=1000000000000", False),
        ("x", "y", None),
        ("x=", "x=3", False),
        (r"\int x = 3", r"\int x = 4", None),
    ],
)
def test_equations_are_equal_up_to_a_factor(answer: str, reference: str, expected: bool | None):
    assert compare_equations(answer, reference) is expected


def test_only_signs_outside_brackets_divide_an_equation():
    assert sides(r"F=\sum_{k=0}^{n} k") == ["F", r"\sum_{k=0}^{n} k"]
    assert sides("x<3") == ["x<3"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2+2=4", "4"),
        ("x=2+3=5", "5"),
        ("x^2+y^2=25", "25"),
        ("1=2", None),
        ("x=y", None),
        ("0.5=50%", "50%"),
        ("5", None),
    ],
)
def test_an_answer_may_end_in_its_value(text: str, value: str | None):
    assert value_of_chain(text, may_have_unknowns=True) == value


def test_a_reference_about_unknowns_has_no_value():
    assert value_of_chain("a+3z=0", may_have_unknowns=False) is None
