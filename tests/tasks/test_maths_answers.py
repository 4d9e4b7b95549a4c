"""References, and the canonical form of answers."""

from __future__ import annotations

import pytest

from stages.tasks.maths_answers import canonical_form, read_reference


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        (r"\frac{1}{2}", r"\frac{1}{2}"),
        (r"so $\boxed{7}$", "7"),
        (r"\boxed{1} papers and \boxed{2} bins", "1,2"),
        (r"Either $\boxed{7}$. Or later $\boxed{5}$.", "5"),
    ],
)
def test_a_reference_is_its_last_boxes_or_the_whole_text(reference: str, answer: str):
    assert read_reference(reference) == answer


@pytest.mark.parametrize(
    ("answer", "stored"),
    [
        (r"\dfrac12", "0.5"),
        ("1,234.50", "1234.5"),
        (r"30\text{ cm}", "30"),
        (r"3.5\text{ million}", "3500000"),
        (r"\text{two lines}", "two lines"),
        (r"20\%", "20%"),
        ("x + 1", "x+1"),
    ],
)
def test_equal_answers_are_stored_as_equal_strings(answer: str, stored: str):
    assert canonical_form(answer) == stored
