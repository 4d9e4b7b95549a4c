"""Rounded values beside exact ones."""

from __future__ import annotations

import pytest

from stages.tasks.maths_grader import verify
from stages.tasks.maths_rounding import is_misrounded


@pytest.mark.parametrize(
    ("answer", "reference", "is_wrong"),
    [
        (r"\frac23 \approx 0.667", r"\frac23 \approx 0.67", False),
        (r"\frac23 \approx 0.66", r"\frac23 \approx 0.67", False),
        (r"\frac23 \approx 0.97", r"\frac23 \approx 0.67", True),
        (r"x = 2\sqrt{2} ≈ 2.83 \text{ cm}", r"2\sqrt{2} \approx 2.8", False),
        (r"x = 2\sqrt{2} ≈ 3.83 \text{ cm}", r"2\sqrt{2} \approx 2.8", True),
        (r"$380 / \sqrt{3}-150 \approx 669.4 \mathrm{mph}$", r"$380 / \sqrt{3}-150 \approx 69.4 \mathrm{mph}$", True),
        (r"\$\frac23 \approx \$0.697", r"\$\frac23 \approx \$0.67", True),
        (r"100 \cdot 3 \approx \$ 300.47", r"100 \cdot 3 \approx \$ 300.42", True),
        (r"\sqrt{1000000} \approx 1,000", r"\sqrt{1000000} \approx 1000", False),
        (r"-\frac{10}{3} \approx −3.3", r"-\frac{10}{3} \approx -3.333", False),
        (r"-\frac{10}{3} \approx 3.3", r"-\frac{10}{3} \approx -3.333", True),
        (r"\cos(207^{\circ}) \approx -0.2891", r"\cos(207^\circ) \approx -0.891", True),
        (r"\cos(207^{\circ}) \approx -0.89", r"\cos(207^\circ) \approx -0.891", False),
    ],
)
def test_the_rounded_values_agree_to_the_digits_that_both_have(answer: str, reference: str, is_wrong: bool):
    assert is_misrounded(answer, reference) is is_wrong


def test_the_right_rounding_beside_a_misrounded_reference_is_right():
    assert not is_misrounded(r"\frac23 \approx 0.667", r"\frac23 \approx 0.65")


@pytest.mark.parametrize("reference", [r"\frac23", r"\frac14 \approx 25\%", r"\approx 3.2", "3.2"])
def test_no_rounded_value_is_required_that_the_reference_does_not_state(reference: str):
    assert not is_misrounded(r"\frac23 \approx 0.9", reference)


def test_a_misrounded_answer_is_wrong_and_a_reference_equals_itself():
    reference = r"\frac23 \approx 0.67"
    assert verify(r"\boxed{\frac23 \approx 0.9}", reference).reward == 0.0
    assert verify(r"\boxed{\frac23}", reference).reward == 1.0
    assert verify(r"\boxed{\frac23 \approx 0.9}", r"\frac23 \approx 0.9").reward == 1.0
