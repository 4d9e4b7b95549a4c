"""What `spo eval` measures: accuracies worked by hand, every response kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stages import evaluate
from stages.errors import FingerprintMismatch
from stages.progress import Summary
from stages.shards.schemas import EVALUATION
from stages.tasks import open_task
from tests.chains import ARITHMETIC, footer, rows
from tests.shards.samples import files

PART = "part-00000-of-00001.parquet"


def measure(out: Path, model: Path, **options: Any) -> Summary:
    given: dict[str, Any] = {**ARITHMETIC, "num_questions": 5, "max_tokens": 24, "threads": 1} | options
    return evaluate.run(evaluate.Config(out=out, model=str(model), **given))


def graded(*questions: tuple[str, str]) -> pa.Table:
    """Responses, one letter each: its answer (- for none); upper case is right. `("q1", "Aab-")`."""
    letters = [(name, letter) for name, responses in questions for letter in responses]
    return pa.table(
        {
            "question_id": [name for name, _ in letters],
            "answer": pa.array([None if letter == "-" else letter.lower() for _, letter in letters], pa.string()),
            "reward": pa.array([float(letter.isupper()) for _, letter in letters], pa.float32()),
        }
    )


def standard_error(*values: float) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def test_accuracies_worked_by_hand():
    # q1: right 2 of 4, b and A tie two to two       → avg 1/2, maj 1/2, pass@2 = 1 − C(2,2)/C(4,2) = 5/6, pass@4 1
    # q2: right 1 of 4, b wins three to one          → avg 1/4, maj 0,   pass@2 = 1 − C(3,2)/C(4,2) = 1/2, pass@4 1
    # q3: right 3 of 4, A wins; none does not vote   → avg 3/4, maj 1,   pass@2 = 1,                       pass@4 1
    # q4: nobody answers                             → avg 0,   maj 0,   pass@2 = 0,                       pass@4 0
    found = evaluate.accuracies(graded(("q1", "AbAb"), ("q2", "bbAb"), ("q3", "AA-A"), ("q4", "----")))
    expected = {
        "avg@4": (1 / 2, 1 / 4, 3 / 4, 0.0),
        "maj@4": (1 / 2, 0.0, 1.0, 0.0),
        "pass@2": (5 / 6, 1 / 2, 1.0, 0.0),
        "pass@4": (1.0, 1.0, 1.0, 0.0),
    }
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name] == pytest.approx((np.mean(values), standard_error(*values))), name


def test_responses_in_any_order_count_for_their_own_question():
    together = evaluate.accuracies(graded(("q1", "AAb"), ("q2", "bbb")))
    mixed = evaluate.accuracies(graded(("q2", "b"), ("q1", "A"), ("q2", "b"), ("q1", "bA"), ("q2", "b")))
    assert mixed == together
    assert together["avg@3"] == pytest.approx((1 / 3, standard_error(2 / 3, 0)))
    assert list(together) == ["avg@3", "maj@3", "pass@2", "pass@3"]


def test_one_response_to_each_question_has_one_accuracy():
    assert evaluate.accuracies(graded(("q1", "A"), ("q2", "b"))) == {"avg@1": pytest.approx((0.5, 0.5))}


def test_one_question_has_no_standard_error():
    mean, error = evaluate.accuracies(graded(("q1", "Ab")))["avg@2"]
    assert (mean, math.isnan(error)) == (0.5, True)


def test_greedy_keeps_one_response_of_every_question(policy: Path, tmp_path: Path):
    summary = measure(tmp_path / "out", policy)
    found, task = rows(tmp_path / "out"), open_task("arithmetic", None, ARITHMETIC["task_arg"])
    assert list(found[0]) == list(EVALUATION.names)
    for row, question in zip(found, task.questions("test")[:5], strict=True):
        assert (row["response_id"], row["sample"]) == (f"{question.id}/0", 0)
        assert (row["question_id"], row["prompt"], row["reference"]) == (
            question.id,
            question.prompt,
            question.reference,
        )
        assert row["reward"] == (
            task.verify(row["text"], question.reference).reward if row["finish_reason"] == "stop" else 0
        )
        assert len(row["token_ids"]) == len(row["logprobs"])
    assert list(summary.figures) == ["avg@1", "avg@1 standard error"]
    assert summary.reward == summary.figures["avg@1"] == np.mean([row["reward"] for row in found])


def test_every_response_is_a_row_and_the_footer_holds_the_accuracies(policy: Path, tmp_path: Path):
    summary = measure(tmp_path / "out", policy, num_generations=4, temperature=0.7, chunk_questions=2)
    found = rows(tmp_path / "out")
    assert [row["response_id"] for row in found] == [f"arithmetic-test-{q}/{i}" for q in range(5) for i in range(4)]
    told = footer(tmp_path / "out" / PART)["summary"]
    assert set(told) == {"avg@4", "maj@4", "pass@2", "pass@4"}
    rewards = np.array([row["reward"] for row in found]).reshape(5, 4)
    assert 0 < rewards.mean() < 1
    means = rewards.mean(axis=1)
    assert told["avg@4"] == pytest.approx([means.mean(), standard_error(*means)])
    assert told["pass@4"][0] == pytest.approx(rewards.any(axis=1).mean())
    assert summary.figures["pass@4 standard error"] == told["pass@4"][1]
    again = measure(tmp_path / "out", policy, num_generations=4, temperature=0.7)
    assert again.up_to_date
    assert again.figures == summary.figures


def test_shards_keep_the_rows_of_the_whole(policy: Path, tmp_path: Path):
    measure(tmp_path / "one", policy)
    for shard in range(7):  # two of them without a question
        measure(tmp_path / "seven", policy, shard=f"{shard}/7")
    assert rows(tmp_path / "seven") == rows(tmp_path / "one")
    assert measure(tmp_path / "seven", policy, shard="0/7").figures == {}


def test_chunks_and_batches_do_not_change_a_byte(policy: Path, tmp_path: Path):
    options = {"num_generations": 3, "temperature": 1.0}
    measure(tmp_path / "plain", policy, **options)
    measure(tmp_path / "other", policy, chunk_questions=1, max_batch_rows=2, **options)
    assert files(tmp_path / "other") == files(tmp_path / "plain")


def test_evaluation_and_rollout_draw_different_numbers(policy: Path, tmp_path: Path):
    from tests.chains import sample

    sample(tmp_path / "rollout", policy, num_questions=5, num_generations=2)
    measure(tmp_path / "eval", policy, split="train", num_generations=2, temperature=1.0)
    drawn = [[row["token_ids"] for row in rows(tmp_path / name)] for name in ("rollout", "eval")]
    assert drawn[0] != drawn[1]


def test_another_number_of_responses_is_refused_by_name(policy: Path, tmp_path: Path):
    measure(tmp_path / "out", policy)
    with pytest.raises(FingerprintMismatch, match="num_generations: 1 there, 2 asked"):
        measure(tmp_path / "out", policy, num_generations=2)
