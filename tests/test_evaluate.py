"""`spo eval`: accuracies worked by hand, one row per response and budget, resumable and shardable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import evaluate
from stages.core.errors import FingerprintMismatch, UserError
from stages.core.progress import Summary
from stages.responses import grading
from stages.shards.schemas import EVALUATION
from stages.shards.writing import PartWriter
from stages.tasks import open_task
from tests.chains import ARITHMETIC, footer, rows, sample, with_context
from tests.evaluation.responses import standard_error
from tests.shards.samples import Notes, files

PART = "part-00000-of-00001.parquet"


def measure(out: Path, model: Path, **options: Any) -> Summary:
    given: dict[str, Any] = {**ARITHMETIC, "num_questions": 5, "max_tokens": 24, "threads": 1} | options
    for name in ("task", "max_tokens"):
        given[name] = given[name] if isinstance(given[name], tuple) else (given[name],)
    return evaluate.run(evaluate.Config(out=out, model=str(model), **given))


def test_a_greedy_evaluation_has_one_row_per_question(policy: Path, tmp_path: Path):
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
    recorded = footer(tmp_path / "out" / PART)["summary"]
    assert set(recorded) == {"avg@4", "maj@4", "pass@2", "pass@4"}
    rewards = np.array([row["reward"] for row in found]).reshape(5, 4)
    assert 0 < rewards.mean() < 1
    means = rewards.mean(axis=1)
    assert recorded["avg@4"] == pytest.approx([means.mean(), standard_error(*means)])
    assert recorded["pass@4"][0] == pytest.approx(rewards.any(axis=1).mean())
    assert summary.figures["pass@4 standard error"] == recorded["pass@4"][1]
    again = measure(tmp_path / "out", policy, num_generations=4, temperature=0.7)
    assert again.up_to_date
    assert again.figures == summary.figures


def test_shards_have_the_rows_of_the_whole_evaluation(policy: Path, tmp_path: Path):
    measure(tmp_path / "one", policy)
    for shard in range(7):  # more shards than questions
        measure(tmp_path / "seven", policy, shard=f"{shard}/7")
    assert rows(tmp_path / "seven") == rows(tmp_path / "one")
    assert measure(tmp_path / "seven", policy, shard="0/7").figures == {}


def test_chunks_and_batches_do_not_change_a_byte(policy: Path, tmp_path: Path):
    options = {"num_generations": 3, "temperature": 1.0}
    measure(tmp_path / "plain", policy, **options)
    measure(tmp_path / "other", policy, chunk_questions=1, max_batch_rows=2, **options)
    assert files(tmp_path / "other") == files(tmp_path / "plain")


def test_evaluation_and_rollout_use_different_random_numbers(policy: Path, tmp_path: Path):
    sample(tmp_path / "rollout", policy, num_questions=5, num_generations=2)
    measure(tmp_path / "eval", policy, split="train", num_generations=2, temperature=1.0)
    drawn = [[row["token_ids"] for row in rows(tmp_path / name)] for name in ("rollout", "eval")]
    assert drawn[0] != drawn[1]


def test_another_number_of_responses_is_refused_by_name(policy: Path, tmp_path: Path):
    measure(tmp_path / "out", policy)
    with pytest.raises(FingerprintMismatch, match="num_generations: found 1, requested 2"):
        measure(tmp_path / "out", policy, num_generations=2)


def test_each_budget_has_the_rows_of_an_evaluation_with_that_budget_alone(policy: Path, tmp_path: Path):
    options = {"num_generations": 3, "temperature": 1.0}
    measure(tmp_path / "all", policy, max_tokens=(9, 4, 24, 9), **options)
    found = rows(tmp_path / "all")
    assert [row["max_tokens"] for row in found[:6]] == [4, 9, 24, 4, 9, 24]
    assert [row["response_id"][-1] for row in found[:6]] == [*"000111"]
    for budget in (4, 9, 24):
        measure(tmp_path / str(budget), policy, max_tokens=budget, **options)
        assert [row for row in found if row["max_tokens"] == budget] == rows(tmp_path / str(budget))
    assert {row["finish_reason"] for row in found if row["max_tokens"] == 9} == {"stop", "length"}


def test_a_response_that_ends_with_the_budget_is_finished_and_a_longer_one_earns_nothing(policy: Path, tmp_path: Path):
    measure(tmp_path / "out", policy, max_tokens=(4, 5, 6, 7, 8, 9, 10, 24), num_generations=3, temperature=1.0)
    whole = {row["response_id"]: row for row in rows(tmp_path / "out") if row["max_tokens"] == 24}
    for row in rows(tmp_path / "out"):
        full = whole[row["response_id"]]
        finished = len(full["token_ids"]) <= row["max_tokens"]
        assert row["token_ids"] == full["token_ids"][: row["max_tokens"]]
        assert row["logprobs"] == full["logprobs"][: row["max_tokens"]]
        assert row["finish_reason"] == (full["finish_reason"] if finished else "length")
        assert row["reward"] == (full["reward"] if finished else 0)
    assert {len(row["token_ids"]) for row in whole.values()} & {5, 6, 7, 8, 9, 10}, "some end with a budget"


def test_several_budgets_are_named_in_the_footer_and_sampled_once(policy: Path, tmp_path: Path):
    several = measure(tmp_path / "several", policy, max_tokens=(4, 24))
    one = measure(tmp_path / "one", policy, max_tokens=24)
    assert several.tokens_sampled == one.tokens_sampled
    assert set(footer(tmp_path / "several" / PART)["summary"]) == {"4/avg@1", "24/avg@1"}
    assert list(several.figures)[::2] == ["4/avg@1", "24/avg@1"]
    assert several.figures["24/avg@1"] == one.figures["avg@1"]
    assert several.figures["4/avg@1"] == 0
    assert measure(tmp_path / "several", policy, max_tokens=(24, 4)).up_to_date, "the order does not matter"


def test_several_tasks_are_evaluated_in_one_run_each_with_its_own_questions(policy: Path, tmp_path: Path):
    options = {"task_arg": ("arithmetic.operations=1",), "num_questions": 3, "chunk_questions": 2}
    both = measure(tmp_path / "both", policy, task=("arithmetic", "knights-and-knaves"), **options)
    found = rows(tmp_path / "both")
    assert [row["task"] for row in found] == ["arithmetic"] * 3 + ["knights-and-knaves"] * 3
    measure(tmp_path / "one", policy, num_questions=3)
    assert found[:3] == rows(tmp_path / "one")
    assert list(footer(tmp_path / "both" / PART)["summary"]) == ["arithmetic/avg@1", "knights-and-knaves/avg@1"]
    assert [source["path"] for source in footer(tmp_path / "both" / PART)["inputs"]] == [
        "arithmetic",
        "knights-and-knaves",
    ]
    assert both.reward is None, "several tasks have no single figure"
    for shard in range(4):
        measure(tmp_path / "four", policy, task=("arithmetic", "knights-and-knaves"), shard=f"{shard}/4", **options)
    assert rows(tmp_path / "four") == found


def test_each_of_several_tasks_reads_its_own_data(policy: Path, tmp_path: Path):
    numbers = tmp_path / "numbers.jsonl"
    numbers.write_text('{"question": "1 + 1?", "answer": "#### 2"}\n{"question": "2 + 2?", "answer": "#### 4"}\n')
    measure(
        tmp_path / "out",
        policy,
        task=("gsm8k", "arithmetic"),
        data=(f"gsm8k={numbers}",),
        task_arg=("arithmetic.operations=1",),
        num_questions=2,
    )
    found = rows(tmp_path / "out")
    assert [row["task"] for row in found] == ["gsm8k", "gsm8k", "arithmetic", "arithmetic"]
    assert [row["reference"] for row in found[:2]] == ["2", "4"]


def test_a_killed_evaluation_of_several_tasks_resumes_with_the_same_bytes(
    policy: Path, tmp_path: Path, monkeypatch: Any
):
    options: dict[str, Any] = {
        "task": ("arithmetic", "knights-and-knaves"),
        "task_arg": ("arithmetic.operations=1",),
        "num_questions": 3,
        "chunk_questions": 2,
        "max_tokens": (6, 12),
    }
    unbroken = measure(tmp_path / "unbroken", policy, **options)
    commit = PartWriter.commit

    def die_after_two(part: PartWriter, chunk: int, *rest: Any) -> None:
        if chunk == 2:
            raise KeyboardInterrupt
        commit(part, chunk, *rest)

    with monkeypatch.context() as broken:
        broken.setattr(PartWriter, "commit", die_after_two)
        with pytest.raises(KeyboardInterrupt):
            measure(tmp_path / "killed", policy, **options)
    resumed = measure(tmp_path / "killed", policy, **options)
    assert 0 < resumed.tokens_sampled < unbroken.tokens_sampled
    assert files(tmp_path / "killed") == files(tmp_path / "unbroken")


def test_ungradable_responses_have_a_null_reward_and_are_counted(policy: Path, tmp_path: Path, monkeypatch: Any):
    original = grading.grade_texts

    def drop_every_other_reward(*given: Any) -> list[grading.Grade]:
        grades = original(*given)
        return [grading.Grade(g.text, g.answer, None if i % 2 else g.reward) for i, g in enumerate(grades)]

    monkeypatch.setattr(grading, "grade_texts", drop_every_other_reward)
    summary = measure(tmp_path / "out", policy, num_generations=2, temperature=1.0)
    assert [row["reward"] is None for row in rows(tmp_path / "out")] == [False, True] * 5
    assert footer(tmp_path / "out" / PART)["counts"]["ungradable"] == 5
    assert summary.notes == ("5 rows could not be graded: the accuracies leave them out",)
    firsts = [row["reward"] for row in rows(tmp_path / "out")[::2]]
    assert summary.figures["avg@2"] == np.mean(firsts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": ()}, "--max-tokens must name at least one budget"),
        ({"max_tokens": (8, 0)}, "--max-tokens must be at least 1; got 0"),
        ({"task": ("arithmetic", "arithmetic")}, "--task names arithmetic twice"),
    ],
)
def test_wrong_options_are_refused_before_any_work(policy: Path, tmp_path: Path, options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        measure(tmp_path / "out", policy, **options)
    assert not (tmp_path / "out").exists()


def test_a_budget_beyond_the_context_is_reported(policy: Path, tmp_path: Path):
    small, notes = with_context(policy, tmp_path / "small", 20), Notes()
    given: dict[str, Any] = {"num_questions": 3, "threads": 1, "task": ("arithmetic",), "task_arg": ("operations=1",)}
    evaluate.run(evaluate.Config(out=tmp_path / "out", model=str(small), max_tokens=(4, 24), **given), notes)
    assert "the context of 20 tokens ends responses to 3 questions before 24 tokens" in notes.lines
