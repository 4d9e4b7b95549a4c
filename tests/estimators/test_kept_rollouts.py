"""`--keep-rollouts`: the rollouts of a state with leave-one-out advantages, beside unchanged advantages."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages.core.errors import UserError
from stages.estimators import kept_rollouts
from stages.shards.schemas import ROLLOUTS
from tests.bench.bench_estimators import kept
from tests.chains import cut, footer, rows, value
from tests.maths.test_estimator_bias import draw
from tests.shards.samples import files

PART = "part-00000-of-00001.parquet"


@pytest.fixture(scope="module")
def rolled(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the `advantages` of the chain and their `rollouts`."""
    here = tmp_path_factory.mktemp("rolled")
    value(here / "advantages", chain / "cutpoints", keep_rollouts=True)
    return here


def test_the_advantages_are_the_same_with_and_without_kept_rollouts(chain: Path, rolled: Path):
    assert rows(rolled / "advantages") == rows(chain / "advantages")
    fingerprints = {footer(here / "advantages" / PART)["fingerprint"] for here in (rolled, chain)}
    assert len(fingerprints) == 1


def test_every_segment_finds_the_rollouts_of_its_state_with_pandas(rolled: Path):
    segments, drawn = (pd.read_parquet(rolled / name) for name in ("advantages", "rollouts"))
    assert list(drawn.columns) == list(ROLLOUTS.names)
    joined = segments.merge(
        drawn.explode("trajectory_ids"), left_on=["trajectory_id", "start"], right_on=["trajectory_ids", "start"]
    )
    rewards = {
        key: group.sort_values("sample")["reward"].tolist()
        for key, group in joined.groupby(["trajectory_id", "segment_index"])
    }
    valued = segments[segments["num_rollouts"] > 0]
    assert len(rewards) == len(valued) > 0
    for name, number, own in zip(valued["trajectory_id"], valued["segment_index"], valued["rewards"], strict=True):
        assert rewards[name, number] == list(own)


def test_the_value_of_a_rollout_leaves_its_own_reward_out(rolled: Path):
    by_state = defaultdict(list)
    for row in rows(rolled / "rollouts"):
        by_state[row["state_id"]].append(row)
    for found in by_state.values():
        rewards = [row["reward"] for row in found]
        for i, row in enumerate(found):
            others = np.mean(rewards[:i] + rewards[i + 1 :])
            assert row["value_start"] == pytest.approx(others)
            assert row["advantage"] == pytest.approx(row["reward"] - others)


def test_the_mask_of_a_rollout_is_the_one_of_the_segments(rolled: Path):
    for row in rows(rolled / "rollouts"):
        assert row["cutpoints"] == [i for i, logprob in enumerate(row["logprobs"]) if logprob < np.log(0.9)]


def test_a_lone_rollout_has_no_advantage(chain: Path, tmp_path: Path):
    value(tmp_path / "advantages", chain / "cutpoints", rollouts=1, keep_rollouts=True)
    assert {(row["value_start"], row["advantage"]) for row in rows(tmp_path / "rollouts")} == {(None, None)}


def test_ungradable_rollouts_have_no_advantage_and_are_in_no_mean():
    value, advantage = kept_rollouts._leave_one_out(np.array([1.0, np.nan, 0.0, 0.5]), np.array([0, 0, 0, 1]))
    assert np.array_equal(value, [0.0, np.nan, 1.0, np.nan], equal_nan=True)
    assert np.array_equal(advantage, [1.0, np.nan, -1.0, np.nan], equal_nan=True)


def test_lost_rollouts_are_made_again_with_the_same_bytes(chain: Path, rolled: Path):
    before = files(rolled / "rollouts")
    for part in (rolled / "rollouts").glob("*.parquet"):
        part.unlink()
    kept_before = files(rolled / "advantages")
    value(rolled / "advantages", chain / "cutpoints", keep_rollouts=True)
    assert (files(rolled / "rollouts"), files(rolled / "advantages")) == (before, kept_before)
    assert value(rolled / "advantages", chain / "cutpoints", keep_rollouts=True).up_to_date


def test_cutpoints_that_record_no_rho_are_refused(chain: Path, tmp_path: Path):
    pd.read_parquet(chain / "cutpoints").to_parquet(tmp_path / "foreign.parquet")
    with pytest.raises(UserError, match="--keep-rollouts needs the --rho"):
        value(
            tmp_path / "advantages",
            tmp_path / "foreign.parquet",
            trajectories=chain / "trajectories",
            keep_rollouts=True,
        )


def test_only_monte_carlo_keeps_rollouts(chain: Path, tmp_path: Path):
    cut(tmp_path / "cutpoints", chain / "trajectories", partition="trajectory")
    with pytest.raises(UserError, match="--keep-rollouts is an option of --estimator monte-carlo"):
        value(tmp_path / "advantages", tmp_path / "cutpoints", estimator="grpo", rollouts=None, keep_rollouts=True)


@pytest.mark.parametrize("rollouts", [2, 4])
def test_the_advantage_of_a_rollout_is_unbiased_and_would_shrink_with_its_own_reward(rollouts: int):
    """On the Markov chain, E[Â | next segment] = A without the own reward, and (1 − 1/n) A with it."""
    for leave_out, expected in ((True, 1.0), (False, 1 - 1 / rollouts)):
        found = draw(kept(rollouts, leave_own_out=leave_out))
        error = found.advantage - expected * found.true_advantage
        for state in range(3):
            own = error[found.state == state]
            assert abs(own.mean()) < 3 * own.std() / np.sqrt(own.size)


def test_the_variance_of_a_rollouts_advantage_is_that_of_independent_rewards():
    """Var(R − mean of n − 1 others) = V (1 − V) · n / (n − 1) for independent rewards."""
    found = draw(kept(4, leave_own_out=True))
    exact = found.true_value[0] * (1 - found.true_value[0]) * 4 / 3
    assert np.var(found.advantage) == pytest.approx(exact, rel=0.1)
