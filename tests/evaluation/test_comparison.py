"""Comparisons of two evaluations worked by hand, and the warnings about differences between them."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pytest

from stages.evaluation.artefacts import comparison_warnings, read_evaluation
from stages.evaluation.comparison import Comparison, compare
from stages.evaluation.scores import score
from tests.evaluation.responses import graded, standard_error, write_evaluation


def compared(first: pa.Table, second: pa.Table) -> list[Comparison]:
    return compare(score(first), score(second))


def test_differences_worked_by_hand():
    # by question: 1 → 0, 0 → 1, 0 → 1, 1 → 1, 0 → 0; every sign pattern of −1 +1 +1 has |Σ| ≥ 1, so p = 1
    first = graded(("q1", "A"), ("q2", "b"), ("q3", "b"), ("q4", "A"), ("q5", "b"))
    second = graded(("q5", "b"), ("q1", "b"), ("q2", "A"), ("q3", "A"), ("q4", "A"))
    (found,) = compared(first, second)
    assert (found.task, found.max_tokens, found.accuracy, found.questions) == ("t", (8, 8), "avg@1", 5)
    assert (found.first.mean, found.second.mean) == pytest.approx((0.4, 0.6))
    expected = (0.2, standard_error(-1, 1, 1, 0, 0))
    assert (found.difference.mean, found.difference.standard_error) == pytest.approx(expected)
    assert (found.won, found.lost, found.tied, found.p_value) == (2, 1, 2, 1.0)


def test_pairing_takes_the_questions_difficulty_out_of_the_error():
    """Each question improves by 1/4: the difference has no error although the questions differ much."""
    first = graded(*((f"q{i}", "A" * (i % 4) + "b" * (4 - i % 4)) for i in range(8)))
    second = graded(*((f"q{i}", "A" * (i % 4 + 1) + "b" * (3 - i % 4)) for i in range(8)))
    found = {one.accuracy: one for one in compared(first, second)}
    assert list(found) == ["avg@4", "maj@4", "pass@2", "pass@4"]
    average = found["avg@4"]
    assert (average.difference.mean, average.difference.standard_error) == (0.25, 0.0)
    assert average.first.standard_error > 0.1
    assert (average.won, average.lost) == (8, 0)
    assert average.p_value == pytest.approx(2 / 2**8)


def test_only_common_questions_are_compared_and_the_others_are_counted():
    (found,) = compared(graded(("q1", "A"), ("q2", "b"), ("q3", "A")), graded(("q3", "b"), ("q4", "A")))
    assert (found.questions, found.only_first, found.only_second) == (1, 2, 1)
    assert (found.first.mean, found.second.mean, found.lost) == (1, 0, 1)
    assert math.isnan(found.difference.standard_error)


def test_a_question_that_one_could_not_grade_is_left_out():
    (found,) = compared(graded(("q1", "A"), ("q2", "?")), graded(("q1", "A"), ("q2", "A")))
    assert (found.questions, found.only_first, found.only_second, found.tied) == (1, 1, 1, 1)


def test_unequal_numbers_of_responses_compare_by_their_average_alone():
    (found,) = compared(graded(("q1", "A"), ("q2", "b")), graded(("q1", "AAbb"), ("q2", "Abbb")))
    assert (found.accuracy, found.difference.mean) == ("avg@1, avg@4", -0.125)


def test_each_task_and_budget_is_compared_with_its_own():
    first = pa.concat_tables([graded(("q1", "A"), max_tokens=4), graded(("q1", "b"), max_tokens=8)])
    second = pa.concat_tables([first, graded(("z", "A"), task="other")])
    found = compared(first, second)
    assert [(one.task, one.max_tokens, one.first.mean, one.tied) for one in found] == [
        ("t", (4, 4), 1.0, 1),
        ("t", (8, 8), 0.0, 1),
    ]


def test_different_budgets_are_compared_if_each_evaluation_has_a_single_one():
    (found,) = compared(graded(("q1", "b"), max_tokens=4), graded(("q1", "A"), max_tokens=16))
    assert (found.max_tokens, found.won) == ((4, 16), 1)
    assert compared(graded(("q1", "b"), task="a"), graded(("q1", "b"), task="b")) == []


def test_different_settings_cause_a_warning_but_seeds_and_questions_do_not(tmp_path: Path):
    settings = {"temperature": 0.0, "seed": 1, "num_questions": 2, "stop": []}
    other = {**settings, "temperature": 0.6, "seed": 2, "num_questions": None, "stop": ["x"]}
    first = read_evaluation(write_evaluation(tmp_path / "a", graded(("q1", "A")), settings=settings))
    second = read_evaluation(write_evaluation(tmp_path / "b", graded(("q1", "A")), settings=other))
    assert comparison_warnings(first, second) == [
        f"stop differs: nothing in {tmp_path}/a, x in {tmp_path}/b",
        f"temperature differs: 0.0 in {tmp_path}/a, 0.6 in {tmp_path}/b",
    ]
    assert comparison_warnings(first, first) == []


def test_changed_reference_answers_cause_a_warning(tmp_path: Path):
    first = read_evaluation(write_evaluation(tmp_path / "a", graded(("q1", "A"), ("q2", "A"))))
    second = read_evaluation(
        write_evaluation(tmp_path / "b", graded(("q1", "A"), ("q2", "A"), reference=["r", "changed"]))
    )
    assert comparison_warnings(first, second) == [
        f"questions with another reference answer in {tmp_path}/b: 1, such as q2"
    ]
