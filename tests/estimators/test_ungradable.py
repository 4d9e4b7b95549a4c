"""A response that could not be graded (reward null) is left out of every mean and has no row, under every estimator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import train
from stages.tasks import open_task
from stages.tasks.verdicts import Place, Reason, Verdict
from tests.chains import ARITHMETIC, cut, rows, sample, value
from tests.estimators.handmade import advantages, estimate_rows, responses, tree_rows, write_trajectories

NAN = float("nan")
UNGRADABLE = Verdict(None, None, Reason.UNGRADABLE, Place.NOWHERE)
ARITHMETIC_TASK = type(open_task("arithmetic", None, ARITHMETIC["task_arg"]))


def without_reward(trajectories: Path, ending: str) -> list[dict[str, Any]]:
    """Return the rows of trajectories, without a reward where the id has this ending."""
    return [row | ({"reward": NAN} if row["trajectory_id"].endswith(ending) else {}) for row in rows(trajectories)]


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("dr-grpo", {"a/0": 0.5, "a/2": -0.5, "a/3": 0, "b/0": 0}),
        ("grpo", {"a/0": np.sqrt(1.5), "a/2": -np.sqrt(1.5), "a/3": 0, "b/0": 0}),
        ("rloo", {"a/0": 0.75, "a/2": -0.75, "a/3": 0, "b/0": 0}),
    ],
)
def test_a_group_is_its_graded_members(tmp_path: Path, estimator: str, expected: dict[str, float]):
    records = responses({"a": [1.0, NAN, 0.0, 0.5], "b": [1.0, NAN], "c": [NAN, NAN]})
    cut(tmp_path / "c", write_trajectories(tmp_path / "t", records), partition="trajectory")
    found, summary = estimate_rows(tmp_path / "out", tmp_path / "c", estimator=estimator)
    assert advantages(found) == pytest.approx(expected, abs=1e-6)
    assert found["a/0", 0]["rewards"] == [1, 0, 0.5]
    assert found["a/0", 0]["num_rollouts"] == 3
    assert summary.figures["segments"] == 4
    assert summary.figures["frac_reward_zero_std"] == 2 / 3, "b and c: nothing to compare"
    assert summary.notes[-3:] == (
        "4 responses could not be graded: left out of every mean, not trained on",
        "4 segments have no row, because their response, or every rollout at one of their ends, could not be graded",
        "1 questions have a single graded response, which has nothing to be compared with: its advantage is 0. "
        "Sample more with --num-generations",
    )


def test_the_best_of_n_bonus_needs_no_reward_of_an_ungradable_response(tmp_path: Path):
    records = responses({"a": [1.0, NAN, 0.0]})
    cut(tmp_path / "c", write_trajectories(tmp_path / "t", records), partition="trajectory")
    found, _ = estimate_rows(tmp_path / "out", tmp_path / "c", estimator="dr-grpo", best_of=2)
    assert advantages(found) == {"a/0": 0.5 + 0.25, "a/2": -0.5 - 0.75}  # 1 - (1 - V)²: 0.75 at the start


def test_the_leaves_of_a_tree(tmp_path: Path):
    records = tree_rows("a", [[1.0, NAN, 0.0], [NAN, NAN], 1.0])
    cut(tmp_path / "c", write_trajectories(tmp_path / "t", records))
    found, summary = estimate_rows(tmp_path / "out", tmp_path / "c", estimator="tree", keep_zero=True)
    # V(0) = 1/2 from two leaves, V(1) is unknown, V(prompt) = 3/4 from nodes 0 and 2
    assert advantages(found) == {"a/0": -0.25, "a/0.0": 0.5, "a/0.2": -0.5, "a/2": 0.25}
    assert found["a/0", 0]["rewards"] == [1, 0, 1]
    assert found["a/0.0", 0]["rewards"] == [1, 0]
    assert found["a/0", 0]["value_std"] == pytest.approx(np.std([0.5, 1.0], ddof=1))
    assert (summary.figures["segments"], summary.figures["frac_reward_zero_std"]) == (4, 0)


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        # V(prompt) = 1/2 over responses 0, 2 and 3; V after [4, 2] is 1/2 over 0 and 2, as response 1 is ungradable
        ("mean", {("a/0", 0): 0, ("a/0", 1): 0.5, ("a/2", 0): 0, ("a/2", 1): -0.5, ("a/3", 0): 0}),
        ("leave-one-out", {("a/0", 0): 0.25, ("a/0", 1): 1, ("a/2", 0): -0.25, ("a/2", 1): -1, ("a/3", 0): 0}),
    ],
)
def test_responses_that_share_a_prefix(tmp_path: Path, baseline: str, expected: dict[tuple[str, int], float]):
    tokens = {"a": [[4, 2, 3, 4], [4, 2, 5, 6], [4, 2, 7, 8], [9, 9]]}
    records = responses({"a": [1.0, NAN, 0.0, 0.5]}, tokens)
    cut(tmp_path / "c", write_trajectories(tmp_path / "t", records), partition="fixed", segment_tokens=2)
    found, summary = estimate_rows(
        tmp_path / "out", tmp_path / "c", estimator="prefix-tree", baseline=baseline, keep_zero=True
    )
    assert {key: row["advantage"] for key, row in found.items()} == pytest.approx(expected)
    assert sorted(found["a/0", 1]["rewards"]) == [0, 1]
    assert summary.notes[-2].startswith("1 responses could not be graded")


def test_rollouts_without_a_verdict_are_left_out_of_the_values(policy: Path, tmp_path: Path, monkeypatch: Any):
    """A wrong answer is made ungradable: right ones earn 1, unfinished ones 0, and nothing else has a reward."""
    sample(tmp_path / "t", policy, num_questions=12, num_generations=4, temperature=0.8)
    cut(tmp_path / "c", tmp_path / "t", interval=2)
    value(tmp_path / "all", tmp_path / "c")
    before = {(row["trajectory_id"], row["segment_index"]): row for row in rows(tmp_path / "all")}
    verify = ARITHMETIC_TASK.verify

    def verify_right_ones(task: Any, response: str, reference: str) -> Verdict:
        verdict = verify(task, response, reference)
        return verdict if verdict.reward else UNGRADABLE

    monkeypatch.setattr(ARITHMETIC_TASK, "verify", verify_right_ones)
    sample(tmp_path / "t2", policy, num_questions=12, num_generations=4, temperature=0.8)
    cut(tmp_path / "c2", tmp_path / "t2", interval=2)
    summary = value(tmp_path / "graded", tmp_path / "c2")
    reward = {row["trajectory_id"]: row["reward"] for row in rows(tmp_path / "t2")}
    assert None in reward.values()
    found = rows(tmp_path / "graded")
    assert all(reward[row["trajectory_id"]] is not None for row in found)
    fewer = 0
    for row in found:
        same = before[row["trajectory_id"], row["segment_index"]]
        assert sum(row["rewards"]) == sum(same["rewards"]), "rollout j has the same key, whatever could be graded"
        assert np.isfinite([row["value_start"], row["value_end"], row["advantage"]]).all()
        if row["num_rollouts"]:
            assert row["value_start"] == np.mean(row["rewards"])
        fewer += row["num_rollouts"] < same["num_rollouts"]
    assert fewer
    assert 0 < summary.figures["rollouts"] == 4 * summary.figures["states"]
    lost = len(before) - len(found)
    assert any(note.startswith(f"{lost} segments have no row") for note in summary.notes)
    assert any("rollouts could not be graded: the values leave them out" in note for note in summary.notes)


def test_rollouts_that_can_never_be_graded_end(policy: Path, tmp_path: Path, monkeypatch: Any):
    sample(tmp_path / "t", policy, temperature=0.8)
    cut(tmp_path / "c", tmp_path / "t", interval=2)
    monkeypatch.setattr(ARITHMETIC_TASK, "verify", lambda *_: UNGRADABLE)
    summary = value(tmp_path / "out", tmp_path / "c", rollouts="2..8", interval_width=0.01)
    assert summary.figures["rollouts"] <= 8 * summary.figures["states"]
    for row in rows(tmp_path / "out"):  # unfinished rollouts alone have a reward
        assert set(row["rewards"]) <= {0.0}


def test_a_critic_gives_no_advantage_to_an_ungradable_response(chain: Path, policy: Path, tmp_path: Path):
    records = without_reward(chain / "trajectories", "/1")
    cut(tmp_path / "c", write_trajectories(tmp_path / "t", records), partition="token")
    found, summary = estimate_rows(tmp_path / "out", tmp_path / "c", estimator="critic", critic=str(policy), threads=1)
    assert {name[-1] for name, _ in found} == {"0", "2", "3"}
    assert f"{len(records) // 4} responses could not be graded" in summary.notes[-2]


def test_training_reads_graded_responses_only(chain: Path, policy: Path, tmp_path: Path):
    records = without_reward(chain / "trajectories", "/1")
    cut(tmp_path / "c", write_trajectories(tmp_path / "t", records), partition="trajectory")
    estimate_rows(tmp_path / "a", tmp_path / "c", estimator="grpo")
    options: dict[str, Any] = {"mask": "all", "temperature": 0.8, "threads": 1}
    summary = train.run(train.Config(advantages=(tmp_path / "a",), model=str(policy), out=tmp_path / "out", **options))
    assert summary.rows == 36
    expected = np.mean([row["reward"] for row in records if not np.isnan(row["reward"])])
    assert summary.reward == pytest.approx(expected, abs=1e-6)
