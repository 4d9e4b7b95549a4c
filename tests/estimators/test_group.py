"""`spo estimate --estimator grpo | rloo | dr-grpo`: a response compared with the others to its question."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stages.core.errors import FingerprintMismatch, UserError
from tests.chains import cut, rows, sample
from tests.estimators.handmade import advantages, estimate_rows, responses, write_trajectories

REWARDS = {"a": [1.0, 0.0, 0.0, 1.0, 1.0], "b": [0.0] * 11, "c": [0.25]}


@pytest.fixture
def cutpoints(tmp_path: Path) -> Path:
    trajectories = write_trajectories(tmp_path / "trajectories", responses(REWARDS))
    cut(tmp_path / "cutpoints", trajectories, partition="trajectory")
    return tmp_path / "cutpoints"


def test_three_groups_by_hand(cutpoints: Path, tmp_path: Path):
    rloo, summary = estimate_rows(tmp_path / "rloo", cutpoints, estimator="rloo")
    assert rloo["a/0", 0]["advantage"] == 0.5  # 2 of the 4 others are right
    assert rloo["a/1", 0]["advantage"] == -0.75
    assert rloo["c/0", 0]["advantage"] == 0  # no others
    assert summary.notes[-1].startswith("1 questions have a single graded response, which has nothing to be compared")
    row = rloo["a/1", 0]
    assert (row["value_start"], row["value_end"], row["num_rollouts"]) == (0.75, 0.0, 5)
    assert row["rewards"] == REWARDS["a"]
    assert summary.figures["frac_reward_zero_std"] == 2 / 3
    assert summary.figures["frac_zero_advantage"] == 12 / 17

    dr_grpo, _ = estimate_rows(tmp_path / "dr", cutpoints, estimator="dr-grpo")
    assert dr_grpo["a/0", 0]["advantage"] == pytest.approx(0.4)
    grpo, _ = estimate_rows(tmp_path / "grpo", cutpoints, estimator="grpo")
    assert grpo["a/0", 0]["advantage"] == pytest.approx(0.4 / np.sqrt(0.24))
    assert grpo["a/0", 0]["value_start"] == pytest.approx(0.6)
    assert grpo["c/0", 0]["advantage"] == 0


def test_restem_selects_the_first_good_responses_of_each_question(cutpoints: Path, tmp_path: Path):
    found, summary = estimate_rows(tmp_path / "all", cutpoints, estimator="restem")
    assert {name for name, _ in found} == {"a/0", "a/3", "a/4"}
    assert {row["advantage"] for row in found.values()} == {1.0}
    assert summary.figures["dropped"] == 14
    two, _ = estimate_rows(tmp_path / "two", cutpoints, estimator="restem", max_responses=2)
    assert {name for name, _ in two} == {"a/0", "a/3"}
    low, _ = estimate_rows(tmp_path / "low", cutpoints, estimator="restem", reward_threshold=0.25)
    assert {name for name, _ in low} == {"a/0", "a/3", "a/4", "c/0"}
    with pytest.raises(UserError, match="--max-responses is an option of --estimator restem"):
        estimate_rows(tmp_path / "wrong", cutpoints, estimator="grpo", max_responses=2)


def test_pairs_are_the_first_right_with_the_first_wrong_response(cutpoints: Path, tmp_path: Path):
    found, _ = estimate_rows(tmp_path / "all", cutpoints, estimator="pairs")
    assert {name: row["advantage"] for (name, _), row in found.items()} == {"a/0": 1, "a/1": -1, "a/3": 1, "a/2": -1}
    one, _ = estimate_rows(tmp_path / "one", cutpoints, estimator="pairs", max_pairs=1)
    assert {name: row["advantage"] for (name, _), row in one.items()} == {"a/0": 1, "a/1": -1}
    none, summary = estimate_rows(tmp_path / "none", cutpoints, estimator="pairs", reward_threshold=0.0)
    assert not none
    assert summary.figures["dropped"] == 17
    with pytest.raises(UserError, match="--max-pairs is an option of --estimator pairs"):
        estimate_rows(tmp_path / "wrong", cutpoints, estimator="grpo", max_pairs=2)


def test_a_response_is_one_segment_and_its_cutpoints_are_kept(cutpoints: Path, tmp_path: Path):
    found, _ = estimate_rows(tmp_path / "out", cutpoints, estimator="grpo")
    for cut_at in rows(cutpoints):
        row = found[cut_at["trajectory_id"], 0]
        assert {name: row[name] for name in cut_at} == cut_at


def test_responses_with_several_segments_are_refused_with_the_remedy(tmp_path: Path):
    trajectories = write_trajectories(tmp_path / "t", responses(REWARDS))
    cut(tmp_path / "c", trajectories, partition="token")
    with pytest.raises(UserError, match=r"grpo needs one segment per response.*a/0.*`spo segment --partition traj"):
        estimate_rows(tmp_path / "out", tmp_path / "c", estimator="grpo")
    assert not (tmp_path / "out").exists()


def test_a_question_may_be_spread_over_parts_and_rows_may_come_in_any_order(cutpoints: Path, tmp_path: Path):
    expected, _ = estimate_rows(tmp_path / "out", cutpoints, estimator="grpo")
    spread = write_trajectories(tmp_path / "spread", responses(REWARDS)[::-1], parts=3)
    cut(tmp_path / "cut", spread, partition="trajectory")
    found, _ = estimate_rows(tmp_path / "found", tmp_path / "cut", estimator="grpo")
    assert found == expected
    assert len(list((tmp_path / "found").glob("*.parquet"))) == 3


def test_unfinished_responses_count_with_their_recorded_reward(policy: Path, tmp_path: Path):
    for shard in range(5):
        sample(tmp_path / "t", policy, num_generations=6, num_questions=10, max_tokens=9, shard=f"{shard}/5")
    cut(tmp_path / "c", tmp_path / "t", partition="trajectory")
    found, _ = estimate_rows(tmp_path / "out", tmp_path / "c", estimator="dr-grpo")
    sampled = rows(tmp_path / "t")
    assert {row["finish_reason"] for row in sampled} == {"stop", "length"}
    groups = {
        name: [row["reward"] for row in sampled if row["question_id"] == name]
        for name in {r["question_id"] for r in sampled}
    }
    for row in sampled:
        mean = np.mean(groups[row["question_id"]])
        assert found[row["trajectory_id"], 0]["advantage"] == pytest.approx(row["reward"] - mean)
    assert np.ptp(list(advantages(found).values())) > 0
    sample(tmp_path / "whole", policy, num_generations=6, num_questions=10, max_tokens=9)
    cut(tmp_path / "whole-cut", tmp_path / "whole", partition="trajectory")
    assert estimate_rows(tmp_path / "one", tmp_path / "whole-cut", estimator="dr-grpo")[0] == found


def test_the_reward_of_unfinished_responses_cannot_be_changed_after_sampling(
    policy: Path, cutpoints: Path, tmp_path: Path
):
    sample(tmp_path / "t", policy, max_tokens=3, unfinished_reward=-0.5)
    cut(tmp_path / "c", tmp_path / "t", partition="trajectory")
    with pytest.raises(
        UserError,
        match=r"-0.2 has no effect here: .*, sampled with --unfinished-reward -0.5; pass",
    ):
        estimate_rows(tmp_path / "out", tmp_path / "c", estimator="grpo", unfinished_reward=-0.2)
    with pytest.raises(UserError, match=r"1 has no effect here: --estimator rloo uses .*trajectories; pass the option"):
        estimate_rows(tmp_path / "out", cutpoints, estimator="rloo", unfinished_reward=1.0)
    assert not (tmp_path / "out").exists()
    estimate_rows(
        tmp_path / "out", tmp_path / "c", estimator="grpo", unfinished_reward=-0.5
    )  # the recorded value, as a recipe's [run] passes it


def test_the_best_of_n_bonus_adds_to_the_scaled_advantage(cutpoints: Path, tmp_path: Path):
    plain, _ = estimate_rows(tmp_path / "plain", cutpoints, estimator="grpo")
    found, _ = estimate_rows(tmp_path / "out", cutpoints, estimator="grpo", best_of=3)
    for key, row in found.items():
        bonus = (1 - row["value_start"]) ** 3 - (1 - row["value_end"]) ** 3
        assert row["advantage"] == pytest.approx(plain[key]["advantage"] + bonus)


def test_each_method_has_its_own_fingerprint(cutpoints: Path, tmp_path: Path):
    estimate_rows(tmp_path / "out", cutpoints, estimator="grpo")
    with pytest.raises(FingerprintMismatch, match="estimator: found grpo, requested rloo"):
        estimate_rows(tmp_path / "out", cutpoints, estimator="rloo")
    _, again = estimate_rows(tmp_path / "out", cutpoints, estimator="grpo", seed=7, temperature=0.3, model="nowhere")
    assert again.up_to_date, "options that are not read are not in the fingerprint"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"estimator": "grpo", "rollouts": "4"},
            "--rollouts is an option of --estimator monte-carlo, forward; grpo does not read it",
        ),
        ({"estimator": "grpo", "keep_zero": True}, "--keep-zero is an option of --estimator tree, prefix-tree"),
        ({"estimator": "prefix-tree", "normalize_by": "siblings"}, "--normalize-by is an option of --estimator tree;"),
        ({"baseline": "leave-one-out"}, "--baseline is an option of --estimator tree, prefix-tree; monte-carlo"),
        (
            {"interval_width": 0.2},
            "--interval-width decides whether to draw more rollouts: expected --rollouts MIN..MAX",
        ),
        ({"budget": 9, "rollouts": "4"}, "--budget decides whether to draw more rollouts"),
        ({"rollouts": "4-32"}, r"--rollouts must be N or MIN\.\.MAX .* got '4-32'"),
        ({"rollouts": "9..4"}, r"--rollouts must be N or MIN\.\.MAX with 1 ≤ MIN ≤ MAX"),
        ({"rollouts": "0"}, r"--rollouts must be N or MIN\.\.MAX"),
        ({"estimator": "gpro"}, "--estimator must be one of monte-carlo, tree, grpo"),
    ],
)
def test_options_that_nothing_reads_are_refused_before_work_begins(options, message, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        estimate_rows(tmp_path / "out", tmp_path / "nowhere", **options)
