"""Solutions with names and with parameters."""

from __future__ import annotations

import pytest

from stages.tasks.maths_solutions import align_solutions, compare_families, read_solutions


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("x=2, y=3", ["(2,3)"]),
        ("y=3, x=2", ["(2,3)"]),
        ("p=5,q=2;p=7,q=2", ["(5,2)", "(7,2)"]),
        ("x_1=1, x_2=4", ["1", "4"]),
        (r"x=1\text{ or }x=4", ["1", "4"]),
    ],
)
def test_named_values_are_points_or_a_list(text: str, values: list[str]):
    solutions = read_solutions(text)
    assert solutions is not None
    assert solutions.as_texts(in_written_order=False) == values


@pytest.mark.parametrize("text", ["x=2", "2,3", "x=2, 3", "x=2, y>3", "p=1,q=2;p=3"])
def test_other_texts_are_not_named_values(text: str):
    assert read_solutions(text) is None


def test_beside_a_bare_list_the_values_keep_their_written_order():
    assert align_solutions("3,4", "CD=3,AB=4") == ("(3,4)", "(3,4)")
    assert align_solutions("x=1,y=2", "a=1,b=2") == ("x=1,y=2", "a=1,b=2")


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        (r"\frac{\pi}{4}+\pi k, k \in \mathbb Z", r"\frac{\pi}{4}+\pi n, n \in \mathbb Z", True),
        (r"\frac{5\pi}{4}-\pi k, k \in \mathbb Z", r"\frac{\pi}{4}+\pi n, n \in \mathbb Z", True),
        (r"\frac{\pi}{4}+2\pi n,\frac{5\pi}{4}+2\pi n, n \in \mathbb Z", r"\frac{\pi}{4}+\pi n, n \in \mathbb Z", True),
        (r"\frac{\pi}{4}+2\pi k, k \in \mathbb Z", r"\frac{\pi}{4}+\pi n, n \in \mathbb Z", False),
        (r"\frac{\pi}{3}+\pi k, k \in \mathbb Z", r"\frac{\pi}{4}+\pi n, n \in \mathbb Z", False),
        (r"2k+1\text{ for integer }k", r"2n-1, n \in \mathbb Z", True),
        ("2k+1", "2n+1", None),
        (r"n^2, n \in \mathbb Z", r"k^2, k \in \mathbb Z", None),
    ],
)
def test_families_are_compared_as_sets(answer: str, reference: str, expected: bool | None):
    assert compare_families(answer, reference) is expected
