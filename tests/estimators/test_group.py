"""`spo estimate --estimator grpo | rloo | dr-grpo`: a response against the others to its question."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stages.core.errors import FingerprintMismatch, UserError
from tests.chains import cut, rows, sample
from tests.estimators.by_hand import advantages, estimated, responses, write_trajectories

REWARDS = {"a": [1.0, 0.0, 0.0, 1.0, 1.0], "b": [0.0] * 11, "c": [0.25]}


@pytest.fixture
def cutpoints(tmp_path: Path) -> Path:
    trajectories = write_trajectories(tmp_path / "trajectories", responses(REWARDS))
    cut(tmp_path / "cutpoints", trajectories, partition="trajectory")
    return tmp_path / "cutpoints"


def test_three_groups_by_hand(cutpoints: Path, tmp_path: Path):
    rloo, summary = estimated(tmp_path / "rloo", cutpoints, estimator="rloo")
    assert rloo["a/0", 0]["advantage"] == 0.5  # of the others 2 in 4 are right
    assert rloo["a/1", 0]["advantage"] == -0.75
    assert rloo["c/0", 0]["advantage"] == 0.25  # no others
    row = rloo["a/1", 0]
    assert (row["value_start"], row["value_end"], row["num_rollouts"]) == (0.75, 0.0, 5)
    assert row["rewards"] == REWARDS["a"]
    assert summary.figures["frac_reward_zero_std"] == 2 / 3
    assert summary.figures["frac_zero_advantage"] == 11 / 17

    dr_grpo, _ = estimated(tmp_path / "dr", cutpoints, estimator="dr-grpo")
    assert dr_grpo["a/0", 0]["advantage"] == pytest.approx(0.4)
    grpo, _ = estimated(tmp_path / "grpo", cutpoints, estimator="grpo")
    assert grpo["a/0", 0]["advantage"] == pytest.approx(0.4 / np.sqrt(0.24))
    assert grpo["a/0", 0]["value_start"] == pytest.approx(0.6)
    assert grpo["c/0", 0]["advantage"] == 0


def test_all_tokens_of_a_response_are_one_segment_and_its_cutpoints_stay(cutpoints: Path, tmp_path: Path):
    found, _ = estimated(tmp_path / "out", cutpoints, estimator="grpo")
    for cut_at in rows(cutpoints):
        row = found[cut_at["trajectory_id"], 0]
        assert {name: row[name] for name in cut_at} == cut_at


def test_responses_that_are_cut_into_segments_are_refused_with_the_remedy(tmp_path: Path):
    trajectories = write_trajectories(tmp_path / "t", responses(REWARDS))
    cut(tmp_path / "c", trajectories, partition="token")
    with pytest.raises(UserError, match=r"grpo gives a response one advantage.*a/0.*`spo segment --partition traj"):
        estimated(tmp_path / "out", tmp_path / "c", estimator="grpo")
    assert not (tmp_path / "out").exists()


def test_a_question_may_be_spread_over_parts_and_rows_may_come_in_any_order(cutpoints: Path, tmp_path: Path):
    expected, _ = estimated(tmp_path / "out", cutpoints, estimator="grpo")
    spread = write_trajectories(tmp_path / "spread", responses(REWARDS)[::-1], parts=3)
    cut(tmp_path / "cut", spread, partition="trajectory")
    found, _ = estimated(tmp_path / "found", tmp_path / "cut", estimator="grpo")
    assert found == expected
    assert len(list((tmp_path / "found").glob("*.parquet"))) == 3


def test_unfinished_responses_count_as_they_were_graded(policy: Path, tmp_path: Path):
    for shard in range(5):
        sample(tmp_path / "t", policy, num_generations=6, num_questions=10, max_tokens=9, shard=f"{shard}/5")
    cut(tmp_path / "c", tmp_path / "t", partition="trajectory")
    found, _ = estimated(tmp_path / "out", tmp_path / "c", estimator="dr-grpo")
    drawn = rows(tmp_path / "t")
    assert {row["finish_reason"] for row in drawn} == {"stop", "length"}
    groups = {
        name: [row["reward"] for row in drawn if row["question_id"] == name]
        for name in {r["question_id"] for r in drawn}
    }
    for row in drawn:
        mean = np.mean(groups[row["question_id"]])
        assert found[row["trajectory_id"], 0]["advantage"] == pytest.approx(row["reward"] - mean)
    assert np.ptp(list(advantages(found).values())) > 0
    sample(tmp_path / "whole", policy, num_generations=6, num_questions=10, max_tokens=9)
    cut(tmp_path / "whole-cut", tmp_path / "whole", partition="trajectory")
    assert estimated(tmp_path / "one", tmp_path / "whole-cut", estimator="dr-grpo")[0] == found


def test_another_reward_of_unfinished_responses_than_they_were_given_is_no_longer_to_be_had(
    policy: Path, cutpoints: Path, tmp_path: Path
):
    sample(tmp_path / "t", policy, max_tokens=3, unfinished_reward=-0.5)
    cut(tmp_path / "c", tmp_path / "t", partition="trajectory")
    with pytest.raises(UserError, match=r"-0.2 comes too late: --estimator grpo takes .*, sampled with -0.5, as they"):
        estimated(tmp_path / "out", tmp_path / "c", estimator="grpo", unfinished_reward=-0.2)
    with pytest.raises(UserError, match=r"--unfinished-reward 1 comes too late: .*trajectories as they are"):
        estimated(tmp_path / "out", cutpoints, estimator="rloo", unfinished_reward=1.0)
    assert not (tmp_path / "out").exists()
    estimated(tmp_path / "out", tmp_path / "c", estimator="grpo", unfinished_reward=-0.5)  # as a recipe's [run] says it


def test_the_best_of_n_bonus_adds_to_the_scaled_advantage(cutpoints: Path, tmp_path: Path):
    plain, _ = estimated(tmp_path / "plain", cutpoints, estimator="grpo")
    found, _ = estimated(tmp_path / "out", cutpoints, estimator="grpo", best_of=3)
    for key, row in found.items():
        bonus = (1 - row["value_start"]) ** 3 - (1 - row["value_end"]) ** 3
        assert row["advantage"] == pytest.approx(plain[key]["advantage"] + bonus)


def test_a_method_is_told_apart_by_its_fingerprint(cutpoints: Path, tmp_path: Path):
    estimated(tmp_path / "out", cutpoints, estimator="grpo")
    with pytest.raises(FingerprintMismatch, match="estimator: found grpo, requested rloo"):
        estimated(tmp_path / "out", cutpoints, estimator="rloo")
    _, again = estimated(tmp_path / "out", cutpoints, estimator="grpo", seed=7, temperature=0.3, model="nowhere")
    assert again.up_to_date, "what is not read is not fingerprinted"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"estimator": "grpo", "rollouts": "4"},
            "--rollouts is an option of --estimator monte-carlo; grpo does not read it",
        ),
        ({"estimator": "grpo", "keep_zero": True}, "--keep-zero is an option of --estimator tree, prefix-tree"),
        ({"estimator": "prefix-tree", "normalize_by": "siblings"}, "--normalize-by is an option of --estimator tree;"),
        ({"baseline": "leave-one-out"}, "--baseline is an option of --estimator tree, prefix-tree; monte-carlo"),
        ({"interval_width": 0.2}, "--interval-width decides whether to draw more rollouts: expected --rollouts MIN..MAX, got 9"),
        ({"budget": 9, "rollouts": "4"}, "--budget says where"),
        ({"rollouts": "4-32"}, r"--rollouts must be N or MIN\.\.MAX .* got '4-32'"),
        ({"rollouts": "9..4"}, r"--rollouts must be N or MIN\.\.MAX with 1 ≤ MIN ≤ MAX"),
        ({"rollouts": "0"}, r"--rollouts must be N or MIN\.\.MAX"),
        ({"estimator": "gpro"}, "--estimator must be one of monte-carlo, tree, grpo"),
    ],
)
def test_options_that_nothing_reads_are_refused_before_work_begins(options, message, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        estimated(tmp_path / "out", tmp_path / "nowhere", **options)
