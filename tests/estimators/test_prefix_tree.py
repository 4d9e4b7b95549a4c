"""`spo estimate --estimator prefix-tree`: values from the tree of shared prefixes of independent responses."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from tests.chains import cut, rows, sample
from tests.estimators.handmade import estimate_rows, responses, write_trajectories

REWARDS = {"a": [1.0, 0.0, 0.0], "b": [1.0, 1.0], "c": [0.5]}
TOKENS = {"a": [[4, 2, 3, 4], [4, 2, 5, 6], [9, 9]], "b": [[4, 2, 3], [4, 2, 8]], "c": [[4, 2, 3]]}
RECORDS = responses(REWARDS, TOKENS)


def cutpoints(path: Path, partition: str, records=RECORDS, parts: int = 1, **options) -> Path:
    cut(path / "cutpoints", write_trajectories(path / "trajectories", records, parts), partition=partition, **options)
    return path / "cutpoints"


def test_two_responses_with_a_shared_prefix_by_hand(tmp_path: Path):
    found, summary = estimate_rows(
        tmp_path / "out", cutpoints(tmp_path, "fixed", segment_tokens=2), estimator="prefix-tree"
    )
    assert {key: row["advantage"] for key, row in found.items()} == pytest.approx(
        {("a/0", 0): 1 / 6, ("a/0", 1): 1 / 2, ("a/1", 0): 1 / 6, ("a/1", 1): -1 / 2, ("a/2", 0): -1 / 3}
    )
    assert found["a/0", 1]["rewards"] == [1, 0], "of the responses with the same first two tokens"
    assert sorted(found["a/0", 0]["rewards"]) == [0, 0, 1]
    assert summary.figures["dropped"] == 6
    assert summary.figures["frac_reward_zero_std"] == 2 / 3


def test_responses_to_different_questions_share_nothing(tmp_path: Path):
    records = responses({"a": [1.0, 0.0], "b": [0.0, 0.0]}, {"a": [[4, 1], [4, 2]], "b": [[4, 1], [4, 3]]})
    found, _ = estimate_rows(tmp_path / "out", cutpoints(tmp_path, "token", records), estimator="prefix-tree")
    assert {name for name, _ in found} == {"a/0", "a/1"}


def test_leave_one_out(tmp_path: Path):
    made = cutpoints(tmp_path, "fixed", segment_tokens=2)
    found, _ = estimate_rows(tmp_path / "out", made, estimator="prefix-tree", baseline="leave-one-out", keep_zero=True)
    assert (found["a/0", 0]["value_start"], found["a/0", 0]["value_end"]) == (0, 0.5)
    assert found["a/0", 1]["advantage"] == 1
    assert found["c/0", 0]["advantage"] == 0, "no other response passes through this state"


def test_leave_one_out_over_whole_responses_is_rloo(tmp_path: Path):
    rewards = {"a": [1.0, 0.0, 0.0, 1.0], "b": [0.5, 1.0]}
    made = cutpoints(tmp_path, "trajectory", responses(rewards))
    ours, _ = estimate_rows(tmp_path / "ours", made, estimator="prefix-tree", baseline="leave-one-out", keep_zero=True)
    rloo, _ = estimate_rows(tmp_path / "rloo", made, estimator="rloo")
    assert {k: row["advantage"] for k, row in ours.items()} == pytest.approx(
        {k: r["advantage"] for k, r in rloo.items()}
    )


@pytest.mark.parametrize("partition", ["branches", "cutpoints", "token"])
def test_advantages_of_sampled_responses_telescope(chain: Path, tmp_path: Path, partition: str):
    cut(tmp_path / "c", chain / "trajectories", partition=partition)
    found, _ = estimate_rows(tmp_path / "out", tmp_path / "c", estimator="prefix-tree", keep_zero=True)
    drawn = {row["trajectory_id"]: row for row in rows(chain / "trajectories")}
    group = defaultdict(list)
    for row in drawn.values():
        group[row["question_id"]].append(row["reward"])
    total = defaultdict(float)
    for (name, _), row in found.items():
        total[name] += row["advantage"]
    for name, row in drawn.items():
        first = found[name, 0]["value_start"]
        assert total[name] == pytest.approx(row["reward"] - first)
        # With the cutpoint partition V(prompt) is estimated only if the first token is a cutpoint, as with rollouts.
        if found[name, 0]["num_rollouts"]:
            assert first == pytest.approx(np.mean(group[row["question_id"]]))
    assert any(total.values())


def test_values_change_only_where_responses_diverge(chain: Path, tmp_path: Path):
    """With one segment per token, V changes only after a token at which responses diverge."""
    cut(tmp_path / "c", chain / "trajectories", partition="token")
    found, _ = estimate_rows(tmp_path / "out", tmp_path / "c", estimator="prefix-tree", keep_zero=True)
    drawn = {row["trajectory_id"]: row for row in rows(chain / "trajectories")}
    moved = 0
    for (name, segment), row in found.items():
        tokens, question = drawn[name]["token_ids"], drawn[name]["question_id"]
        others = [
            other["token_ids"][: segment + 1] == tokens[: segment + 1]
            for other in drawn.values()
            if other["question_id"] == question and other["token_ids"][:segment] == tokens[:segment]
        ]
        assert row["num_rollouts"] == len(others)
        if all(others):
            assert row["advantage"] == 0
        moved += row["advantage"] != 0
    assert moved > 10


def test_the_order_of_rows_and_parts_does_not_matter(tmp_path: Path):
    records = list(RECORDS)
    random.Random(1).shuffle(records)
    results = []
    for name, some, parts in (("plain", RECORDS, 1), ("shuffled", records, 1), ("spread", records, 3)):
        made = cutpoints(tmp_path / name, "fixed", some, parts, segment_tokens=2)
        results.append(estimate_rows(tmp_path / name / "out", made, estimator="prefix-tree", keep_zero=True)[0])
    assert results[0] == results[1] == results[2]


def test_the_number_of_parts_changes_no_row(policy: Path, tmp_path: Path):
    for name, parts in (("one", 1), ("five", 5)):
        for shard in range(parts):
            sample(tmp_path / name / "t", policy, num_generations=4, num_questions=5, shard=f"{shard}/{parts}")
        cut(tmp_path / name / "c", tmp_path / name / "t", partition="branches")
    one, five = (
        estimate_rows(tmp_path / n / "a", tmp_path / n / "c", estimator="prefix-tree")[0] for n in ("one", "five")
    )
    assert one == five
    assert one


def test_tempo_is_grpo_where_nothing_branches_and_adds_the_branch_term_elsewhere(tmp_path: Path):
    made = cutpoints(tmp_path, "token")
    found, _ = estimate_rows(tmp_path / "tempo", made, estimator="tempo", keep_zero=True)
    branch, _ = estimate_rows(tmp_path / "branch", made, estimator="prefix-tree", keep_zero=True)
    std = 2**0.5 / 3  # of the rewards 1, 0, 0; their mean is 1/3
    for (name, number), row in found.items():
        if name.startswith("a"):
            group_term = (2 / 3 if name == "a/0" else -1 / 3) / std
            assert row["advantage"] == pytest.approx(group_term + branch[name, number]["advantage"] / std, abs=1e-6)
        else:
            assert row["advantage"] == 0, "the rewards of b agree"
    assert found["a/0", 1]["advantage"] == pytest.approx(2 / 3 / std, abs=1e-6), "two responses share this token"
    assert found["a/0", 2]["advantage"] == pytest.approx((2 / 3 + 1 / 2) / std, abs=1e-6), "they part at this one"
