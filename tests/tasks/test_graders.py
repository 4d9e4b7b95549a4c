"""The grader of numbers (GSM8K): which number is the answer, hostile text, golden cases and real data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.tasks import open_task
from tests.pace import within

TASK = open_task("gsm8k")


@pytest.mark.parametrize(
    ("response", "reference", "answer", "reward"),
    [
        ("so\n#### 18", "18", "18", 1.0),
        ("#### 18\nno, again\n#### 17", "18", "17", 0.0),
        ("#### 17\nno, again\n#### 18", "18", "18", 1.0),
        ("#### 1,018.", "1018", "1018", 1.0),
        ("#### 1018", "1,018", "1018", 1.0),
        ("the answer is 18", "18", "18", 1.0),
        ("18 dollars in 7 days", "18", "7", 0.0),
        ("#### 36/2", "18", "18", 1.0),
        (r"so \boxed{\$18} for 5 eggs", "18", "18", 1.0),
        ("no idea", "18", None, 0.0),
        ("#### 18\n####", "18", None, 0.0),
        ("#### 0.30", "0.3", "0.3", 1.0),
        ("#### 0.30000000000000004", "0.3", "0.30000000000000004", 0.0),
    ],
)
def test_the_number_after_the_last_mark_or_in_a_box_is_the_answer(
    response: str, reference: str, answer: str | None, reward: float
):
    verdict = TASK.verify(response, reference)
    assert (verdict.answer, verdict.reward) == (answer, reward)


@pytest.mark.parametrize("fragment", ["####", "1", "1,111", " ", "\t-", "$", "1.", "<<", "#### 1,", "\n"])
def test_hostile_text_is_read_in_linear_time(fragment: str):
    with within(0.5):
        TASK.verify("#### " + fragment * 500_000, "18")
        TASK.verify(fragment * 500_000 + "####" + fragment * 500_000, "18")


def test_every_gold_solution_of_gsm8k_is_right(shared: Path):
    task = open_task("gsm8k", str(shared / "data" / "gsm8k"))
    questions = [*task.questions("train"), *task.questions("test")]
    assert len(questions) == 8792
    wrong = [q.id for q in questions if task.verify(q.solution or "", q.reference).reward != 1.0]
    assert not wrong
    assert not [q.id for q in questions if "<<" in (q.solution or "")]
    assert len({q.id for q in questions}) == 8792


def test_gold_solutions_of_other_questions_are_wrong(shared: Path):
    questions = open_task("gsm8k", str(shared / "data")).questions("test")
    others = [*questions[1:], questions[0]]
    for question, other in zip(questions, others, strict=True):
        same = question.reference.replace(",", "") == other.reference.replace(",", "")
        assert TASK.verify(question.solution or "", other.reference).reward == float(same)


def test_golden_cases_are_graded_as_expected(shared: Path):
    """Cases whose verdict is a matter of convention (`policy`) are skipped."""
    lines = (shared / "golden" / "grader_cases.jsonl").read_text().splitlines()
    cases = [case for case in map(json.loads, lines) if case["kind"] == "gsm8k" and case["policy"] is None]
    assert len(cases) >= 75
    for case in cases:
        graded = TASK.verify(case["prediction_text"], case["gold_answer"]).reward
        assert graded == float(case["expected_correct"]), case["id"]
