"""Word problems with a number for an answer: how rows are read, and what counts as right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.tasks import open_task
from tests.pace import within
from tests.tasks.test_data import ROWS

TASK = open_task("gsm8k")


def test_a_row_becomes_a_question_with_a_reference_and_a_solution(tmp_path: Path):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    first, second = open_task("gsm8k", str(tmp_path)).questions("train")
    assert first.id == "gsm8k-train-0"
    assert first.prompt == "Two ducks and three ducks?"
    assert first.solution == " 2 + 3 = 5 ducks.\nAll are here.\n#### 5"
    assert (first.reference, second.reference) == ("5", "67,500")


def test_other_columns_and_bare_numbers_are_taken(tmp_path: Path):
    file = tmp_path / "mine.jsonl"
    file.write_text('{"q": "1 + 1?", "a": 2}\n\n{"q": "A line\u2028break?", "a": "3"}\n', encoding="utf-8")
    first, second = open_task("gsm8k", str(file), ["question=q", "answer=a"]).questions("train")
    assert (first.prompt, first.reference, first.solution) == ("1 + 1?", "2", None)
    assert second.prompt == "A line\u2028break?"


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
def test_the_last_mark_decides(response: str, reference: str, answer: str | None, reward: float):
    verdict = TASK.verify(response, reference)
    assert (verdict.answer, verdict.reward) == (answer, reward)


@pytest.mark.parametrize("piece", ["####", "1", "1,111", " ", "\t-", "$", "1.", "<<", "#### 1,", "\n"])
def test_a_hostile_response_takes_no_time(piece: str):
    with within(0.5):
        TASK.verify("#### " + piece * 500_000, "18")
        TASK.verify(piece * 500_000 + "####" + piece * 500_000, "18")


def test_every_gold_solution_of_the_real_data_grades_right(shared: Path):
    task = open_task("gsm8k", str(shared / "data" / "gsm8k"))
    questions = [*task.questions("train"), *task.questions("test")]
    assert len(questions) == 8792
    wrong = [q.id for q in questions if task.verify(q.solution or "", q.reference).reward != 1.0]
    assert not wrong
    assert not [q.id for q in questions if "<<" in (q.solution or "")]
    assert len({q.id for q in questions}) == 8792


def test_golds_of_other_questions_grade_wrong(shared: Path):
    questions = open_task("gsm8k", str(shared / "data")).questions("test")
    others = [*questions[1:], questions[0]]
    for question, other in zip(questions, others, strict=True):
        same = question.reference.replace(",", "") == other.reference.replace(",", "")
        assert TASK.verify(question.solution or "", other.reference).reward == float(same)


def test_the_golden_cases_are_graded_as_expected(shared: Path):
    """Those whose verdict is a matter of convention are left out."""
    lines = (shared / "golden" / "grader_cases.jsonl").read_text().splitlines()
    cases = [case for case in map(json.loads, lines) if case["kind"] == "gsm8k" and case["policy"] is None]
    assert len(cases) >= 75
    for case in cases:
        graded = TASK.verify(case["prediction_text"], case["gold_answer"]).reward
        assert graded == float(case["expected_correct"]), case["id"]
