"""Accuracies, lengths and truncation worked by hand; ungradable responses are excluded and counted."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.evaluation.scores import Result, score
from stages.shards.schemas import EVALUATION
from tests.evaluation.responses import graded, standard_error
from tests.pace import within


def result(*questions: tuple[str, str]) -> Result:
    (scores,) = score(graded(*questions))
    return scores.result()


def accuracies(found: Result) -> dict[str, tuple[float, float]]:
    return {name: (one.mean, one.standard_error) for name, one in found.accuracies.items()}


def test_accuracies_worked_by_hand():
    # q1: right 2 of 4, b and A tie two to two       → avg 1/2, maj 1/2, pass@2 = 1 − C(2,2)/C(4,2) = 5/6, pass@4 1
    # q2: right 1 of 4, b wins three to one          → avg 1/4, maj 0,   pass@2 = 1 − C(3,2)/C(4,2) = 1/2, pass@4 1
    # q3: right 3 of 4, A wins; no answer, no vote    → avg 3/4, maj 1,   pass@2 = 1,                       pass@4 1
    # q4: no answers                                 → avg 0,   maj 0,   pass@2 = 0,                       pass@4 0
    found = result(("q1", "AbAb"), ("q2", "bbAb"), ("q3", "AA-A"), ("q4", "----"))
    expected = {
        "avg@4": (1 / 2, 1 / 4, 3 / 4, 0.0),
        "maj@4": (1 / 2, 0.0, 1.0, 0.0),
        "pass@2": (5 / 6, 1 / 2, 1.0, 0.0),
        "pass@4": (1.0, 1.0, 1.0, 0.0),
    }
    assert list(found.accuracies) == list(expected)
    for name, values in expected.items():
        assert accuracies(found)[name] == pytest.approx((np.mean(values), standard_error(*values))), name
    assert (found.questions, found.samples, found.ungradable, found.unscored) == (4, 4, 0, 0)


def test_responses_in_any_order_count_for_their_own_question():
    together = result(("q1", "AAb"), ("q2", "bbb"))
    mixed = result(("q2", "b"), ("q1", "A"), ("q2", "b"), ("q1", "bA"), ("q2", "b"))
    assert accuracies(mixed) == accuracies(together)
    assert accuracies(together)["avg@3"] == pytest.approx((1 / 3, standard_error(2 / 3, 0)))
    assert list(accuracies(together)) == ["avg@3", "maj@3", "pass@2", "pass@3"]


def test_one_response_to_each_question_has_one_accuracy():
    assert accuracies(result(("q1", "A"), ("q2", "b"))) == {"avg@1": pytest.approx((0.5, 0.5))}


def test_one_question_has_no_standard_error():
    mean, error = accuracies(result(("q1", "Ab")))["avg@2"]
    assert (mean, math.isnan(error)) == (0.5, True)


def test_ungradable_responses_are_excluded_and_counted_and_never_wrong():
    # q1: A, b and two ungradable → avg 1/2, pass@2 1, pass@4 of the two graded ones: 1; q2: A A A b; q3: none graded
    found = result(("q1", "A?b?"), ("q2", "AAAb"), ("q3", "????"))
    assert (found.ungradable, found.unscored, found.questions) == (6, 1, 3)
    assert accuracies(found)["avg@4"] == pytest.approx((0.625, standard_error(1 / 2, 3 / 4)))
    assert accuracies(found)["maj@4"] == pytest.approx((0.75, standard_error(1 / 2, 1)))
    assert accuracies(found)["pass@2"] == accuracies(found)["pass@4"] == (1.0, 0.0)


def test_rewards_without_answers_have_no_majority():
    found = result(("q1", "AA"), ("q2", "bA"))
    (scores,) = score(graded(("q1", "AA"), ("q2", "bA"), answer=None))
    assert {**accuracies(scores.result()), "maj@2": accuracies(found)["maj@2"]} == accuracies(found)
    assert "maj@2" not in scores.result().accuracies


def test_an_evaluation_without_a_graded_response_has_no_accuracy():
    found = result(("q1", "??"), ("q2", "?"))
    assert (found.accuracies, found.ungradable, found.unscored) == ({}, 3, 2)
    assert found.length.mean == 2


@given(st.lists(st.text("AAb-?", min_size=1, max_size=9), min_size=1, max_size=5))
def test_pass_at_k_never_decreases_in_k_even_with_unequal_numbers_of_responses(questions):
    found = result(*((f"q{i}", letters) for i, letters in enumerate(questions)))
    curve = [one.mean for name, one in found.accuracies.items() if name.startswith(("avg", "pass"))]
    if all(len(letters) == len(questions[0]) for letters in questions) and not found.ungradable:
        assert np.all(np.diff(curve) >= -1e-9), "avg@k is pass@1"
    assert np.all(np.diff(curve[1:]) >= -1e-9)


def test_tasks_and_budgets_are_scored_separately():
    table = pa.concat_tables(
        [
            graded(("q1", "A"), ("q2", "b"), task="math", max_tokens=16),
            graded(("q1", "b"), ("q2", "b"), task="math", max_tokens=4, finish_reason=["length", "stop"]),
            graded(("z", "A"), task="aime", max_tokens=4),
        ]
    )
    found = [one.result() for one in score(table)]
    assert [(one.task, one.max_tokens) for one in found] == [("math", 4), ("math", 16), ("aime", 4)]
    assert [one.accuracies["avg@1"].mean for one in found] == [0, 0.5, 1]
    assert [one.truncated.mean for one in found] == [0.5, 0, 0]


def test_length_and_truncation_are_means_over_questions():
    ends = ["length", "stop", "stop", "stop"]
    table = graded(("q1", "AA"), ("q2", "AA"), token_ids=[[0] * 9, [0], [0] * 2, [0] * 4], finish_reason=ends)
    (scores,) = score(table)
    found = scores.result()
    assert (found.length.mean, found.length.standard_error) == pytest.approx((4, standard_error(5, 3)))
    assert (found.truncated.mean, found.truncated.standard_error) == pytest.approx((0.25, standard_error(0.5, 0)))


def test_groups_have_their_own_accuracies_in_order():
    subject = ["Geometry", "Geometry", "Algebra", None]
    (scores,) = score(graded(("q1", "Ab"), ("q2", "A"), ("q3", "b"), subject=subject, level="3"))
    groups = scores.results_by("subject")
    assert [(one.group, one.questions, one.accuracies["avg@2"].mean) for one in groups] == [
        ("Algebra", 1, 1.0),
        ("Geometry", 1, 0.5),
    ]
    assert scores.results_by("level") == [], "a single level divides nothing"


def test_responses_without_task_and_budget_are_scored_together():
    (scores,) = score(graded(("q1", "Ab"), ("q2", "bb"), task=None, max_tokens=None))
    assert (scores.task, scores.max_tokens, scores.result().accuracies["avg@2"].mean) == (None, None, 0.25)


def test_no_responses_have_no_scores():
    assert score(EVALUATION.arrow.empty_table()) == []


def test_a_hundred_thousand_responses_take_seconds():
    rng = np.random.default_rng(0)
    count = 100_000
    table = graded(("q", "A" * count)).drop_columns(["question_id", "answer", "reward"])
    table = table.append_column("question_id", pa.array([f"q{i // 8}" for i in range(count)]))
    table = table.append_column("answer", pa.array(rng.integers(0, 9, count).astype(str).tolist()))
    table = table.append_column("reward", pa.array(rng.integers(0, 2, count).astype(np.float32)))
    with within(5):
        (scores,) = score(table)
        assert list(scores.result().accuracies) == ["avg@8", "maj@8", "pass@2", "pass@4", "pass@8"]
