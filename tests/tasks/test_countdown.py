"""Verdicts on arithmetic puzzles: which expressions are right, and that hostile ones are rejected at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.tasks.countdown import verify_countdown
from tests.pace import within

NUMBERS = (4, 6, 1, 1)


@pytest.mark.parametrize(
    "expression",
    [
        "4 * 6 * 1 * 1",
        "(6 - 1 + 1) * 4",
        r"4 \times 6 \cdot 1 \div 1",
        "4 × 6 ÷ 1 × 1",
        r"\left(4\right)(6) + 1 − 1",
        r"\dfrac{4 * 6}{1 * 1}",
        r"\text{(6 - 1 + 1) * 4}",
        "[6 - (1 - 1)] * 4",
        "4 * 6 * 1 * 1 = 24",
        "24 = 4 * 6 * 1 * 1",
    ],
)
def test_an_expression_that_uses_each_number_once_and_equals_the_target_is_right(expression: str):
    assert verify_countdown(rf"so \boxed{{{expression}}}.", NUMBERS).reward == 1.0


@pytest.mark.parametrize(
    "expression",
    [
        "4 * 6",
        "4 * 6 * 1 * 1 * 1",
        "4 + 6 + 1 + 1",
        "4 + 6 + 1 + 1 = 24",
        "4 * 6 = 24 * 1 * 1 = 24",
        "24",
        "46 - 11 * 2",
        "6 ** 4 * 1 * 1",
        "4 * 6 // 1 * 1",
        "4 * 6 / (1 - 1)",
        "(4 * 6 * 1 * 1",
        "4 * 6 * 1 * 1)",
        "4 * 6 * 1 * 1.0",
        "-4 * -6 * 1 * 1",
        "4 * 6 * 1 * 1 if 1 else 0",
        "__import__('os').abort()",
        "9**9**9**9",
        "(" * 10_000 + "4" + ")" * 10_000,
        "4 * 6 * 1 * 1" + " * 1" * 100_000,
        "9" * 1_000_000,
        "",
    ],
)
def test_anything_else_is_wrong_at_once(expression: str):
    with within(2):
        assert verify_countdown(rf"\boxed{{{expression}}}", NUMBERS).reward == 0.0


def test_fractions_are_exact():
    assert verify_countdown(r"\boxed{8 / (3 - 8 / 3)}", (3, 3, 8, 8)).reward == 1.0
    assert verify_countdown(r"\boxed{24 + 1 / 100000000 - 0}", (24, 1, 100000000, 0)).reward == 0.0


def test_the_last_box_after_the_thinking_is_the_answer_in_canonical_form():
    verdict = verify_countdown(r"<think>\boxed{1}</think> \boxed{4 + 6} no: \boxed{4 \times (6 × 1) \cdot 1}", NUMBERS)
    assert (verdict.answer, verdict.reward) == ("4*(6*1)*1", 1.0)
    assert verify_countdown("4 * 6 * 1 * 1", NUMBERS).answer is None


def test_the_target_can_be_changed():
    assert verify_countdown(r"\boxed{10 * 10 - 1}", (10, 10, 1), target=99).reward == 1.0


@given(st.text(alphabet="0123456789+-*/(){}= .\\frac", max_size=60))
def test_any_text_gets_a_verdict(text: str):
    assert verify_countdown(rf"\boxed{{{text}}}", NUMBERS).reward in (0.0, 1.0)


def test_golden_cases_are_graded_as_expected(shared: Path):
    cases = map(json.loads, (shared / "golden" / "grader_cases.jsonl").read_text().splitlines())
    for case in cases:
        if case["kind"] == "countdown24":
            numbers = [int(number) for number in case["gold_answer"].split()]
            verdict = verify_countdown(case["prediction_text"], numbers)
            assert verdict.reward == float(case["expected_correct"]), case["id"]
