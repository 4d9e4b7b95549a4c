"""Test `spo train --critic-learning-rate`: a critic is trained and saved with the policy, and resumes after a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from stages import estimate, train
from stages.core.errors import UserError
from stages.core.progress import Silent, Summary
from stages.models import checkpoints
from stages.optimization.critic import open_critic, score_states
from stages.shards.lineage import read_lineage
from stages.shards.parts import open_artefact
from stages.shards.schemas import ADVANTAGES, TRAJECTORIES
from stages.training.critic import load_visited_states
from tests.chains import cut, rows, sample

FILES = ("model.safetensors", "value_head.state", "optimizer.state")


@pytest.fixture(scope="module")
def ppo(chain: Path, policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with `cutpoints` at every token and `advantages` by a critic whose head is zero."""
    here = tmp_path_factory.mktemp("ppo")
    cut(here / "cutpoints", chain / "trajectories", partition="token")
    estimate_advantages(here / "advantages", here / "cutpoints", policy)
    return here


def estimate_advantages(out: Path, cutpoints: Path, critic: Path, **options: Any) -> Summary:
    given: dict[str, Any] = {"estimator": "critic", "critic": str(critic), "threads": 1, "gae_lambda": 1.0} | options
    return estimate.run(estimate.Config(out=out, cutpoints=cutpoints, **given))


def settings(advantages: Path, out: Path, **changes: Any) -> train.Config:
    given: dict[str, Any] = {
        "mask": "all",
        "learning_rate": 1e-4,
        "critic_learning_rate": 1e-3,
        "per_device_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "beta": 0.0,
        "device": "cpu",
        "threads": 1,
    }
    return train.Config(advantages=(advantages,), out=out, **given | changes)


def metrics(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def moved(one: Path, other: Path, name: str) -> bool:
    first, second = load_file(one / name), load_file(other / name)
    return any(not first[key].equal(value) for key, value in second.items())


def assert_identical(one: Path, other: Path) -> None:
    for path in (*(Path("critic") / name for name in FILES), FILES[0], FILES[2], "spo.json"):
        assert (one / path).read_bytes() == (other / path).read_bytes(), path


def test_every_boundary_has_an_old_value_and_a_return(chain: Path, ppo: Path) -> None:
    visited = load_visited_states(
        open_artefact(ppo / "advantages", ADVANTAGES), open_artefact(chain / "trajectories", TRAJECTORIES)
    )
    sampled = {row["trajectory_id"]: row for row in rows(chain / "trajectories")}
    assert list(visited) == list(sampled)
    for name, one in visited.items():
        row = sampled[name]
        assert one.tokens.tolist() == row["prompt_token_ids"] + row["token_ids"]
        first = len(row["prompt_token_ids"])
        assert one.lengths.tolist() == list(range(first, first + len(row["token_ids"])))
        assert one.old_values is not None
        assert one.returns is not None
        assert not one.old_values.any()
        assert (one.returns == row["reward"]).all()  # λ = 1: the return is the reward


def test_the_critic_is_a_model_directory_within_the_one_of_the_policy(policy: Path, ppo: Path, tmp_path: Path) -> None:
    summary = train.run(settings(ppo / "advantages", tmp_path / "policy"))
    lines = metrics(tmp_path / "policy")
    for name in ("loss", "value_mean", "clip_ratio", "grad_norm"):
        assert all(np.isfinite(line[f"critic/{name}"]) for line in lines), name
    assert lines[0]["critic/value_mean"] == 0.0  # the head was zero
    assert summary.figures["critic/loss"] == pytest.approx(np.mean([line["critic/loss"] for line in lines]))
    for place in ("policy", "policy/critic"):
        assert checkpoints.resolve(str(tmp_path / place)) == tmp_path / place
    assert moved(tmp_path / "policy", policy, FILES[0])
    lineage = read_lineage(tmp_path / "policy")
    assert lineage is not None
    assert [source.stage for source in lineage.inputs] == ["estimate", "rollout", "critic"]
    assert lineage.config["critic_learning_rate"] == 1e-3


def test_the_critic_learns_to_predict_the_reward(chain: Path, policy: Path, tmp_path: Path) -> None:
    """The reward is 1 for questions that start with an even digit; the critic starts with values of 0."""
    sampled = pq.read_table(chain / "trajectories")
    earned = [float(prompt[0] % 2 == 0) for prompt in sampled["prompt_token_ids"].to_pylist()]
    column = sampled.schema.get_field_index("reward")
    (tmp_path / "trajectories").mkdir()
    changed = sampled.set_column(column, "reward", pa.array(earned, pa.float32())).replace_schema_metadata()
    pq.write_table(changed, tmp_path / "trajectories" / "changed.parquet")
    cut(tmp_path / "cutpoints", tmp_path / "trajectories", partition="token")
    estimate_advantages(tmp_path / "advantages", tmp_path / "cutpoints", policy)
    given = {"model": str(policy), "temperature": 0.8, "epochs": 12, "critic_learning_rate": 5e-3, "value_clip": 0.0}
    train.run(settings(tmp_path / "advantages", tmp_path / "policy", **given))
    lines = metrics(tmp_path / "policy")
    first, last = ([line["critic/loss"] for line in part] for part in (lines[:3], lines[-3:]))
    assert np.mean(last) < 0.3 * np.mean(first)
    assert lines[0]["critic/explained_variance"] == pytest.approx(0.0, abs=1e-9)
    assert min(line["critic/explained_variance"] for line in lines[-3:]) > 0.5
    estimate_advantages(tmp_path / "later", tmp_path / "cutpoints", tmp_path / "policy" / "critic")
    before, after = (np.square([row["advantage"] for row in rows(tmp_path / name)]) for name in ("advantages", "later"))
    assert after.mean() < 0.3 * before.mean()  # λ = 1: the advantage is the error of the critic


def test_training_a_critic_does_not_change_the_policy(ppo: Path, tmp_path: Path) -> None:
    train.run(settings(ppo / "advantages", tmp_path / "both"))
    train.run(settings(ppo / "advantages", tmp_path / "alone", critic_learning_rate=None))
    assert (tmp_path / "both" / FILES[0]).read_bytes() == (tmp_path / "alone" / FILES[0]).read_bytes()
    assert not (tmp_path / "alone" / "critic").exists()
    assert "critic/loss" not in metrics(tmp_path / "alone")[0]


def test_the_next_iteration_continues_the_critic_and_its_optimizer(
    chain: Path, policy: Path, ppo: Path, tmp_path: Path
) -> None:
    """As in recipes, the critic of an iteration is the one in the checkpoint of the previous iteration."""
    first = tmp_path / "first"
    train.run(settings(ppo / "advantages", first))
    sample(tmp_path / "trajectories", first, num_questions=4, temperature=0.8)
    cut(tmp_path / "cutpoints", tmp_path / "trajectories", partition="token")
    assert not estimate_advantages(tmp_path / "advantages", tmp_path / "cutpoints", first / "critic").notes
    train.run(settings(tmp_path / "advantages", tmp_path / "second"))
    line = metrics(tmp_path / "second")[0]
    assert line["critic/value_mean"] == pytest.approx(
        np.mean([row["value_start"] for row in rows(tmp_path / "advantages")]), abs=1e-6
    )
    lineage = read_lineage(tmp_path / "second")
    assert lineage is not None
    assert [source.stage for source in lineage.inputs][-2:] == ["critic", "critic's optimizer"]
    train.run(settings(tmp_path / "advantages", tmp_path / "fresh", optimizer_state="fresh"))
    assert moved(tmp_path / "second" / "critic", tmp_path / "fresh" / "critic", FILES[1])


def attempt(config: train.Config, after: int) -> int:
    """Run in a child that kills itself after a number of steps; return its status."""

    class Kill(Silent):
        left = after

        def advance(self, done: int = 0, tokens: int = 0, prefilled: int = 0, **figures: float) -> None:
            if "loss" in figures:
                self.left -= 1
                if self.left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            train.run(config, Kill())
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]


def test_a_run_that_is_killed_and_resumed_ends_with_the_same_bytes(ppo: Path, tmp_path: Path) -> None:
    given = {"save_steps": 1, "epochs": 2}
    for name in ("whole", "torn"):
        (tmp_path / name).mkdir()
    train.run(settings(ppo / "advantages", tmp_path / "whole" / "policy", **given))
    config = settings(ppo / "advantages", tmp_path / "torn" / "policy", **given)
    for after in (3, 2):
        assert os.WIFSIGNALED(attempt(config, after))
    (saved,) = (tmp_path / "torn" / ".policy.partial").glob("step-*")
    assert all((saved / "critic" / name).is_file() for name in FILES)
    train.run(config)
    assert_identical(tmp_path / "whole" / "policy", tmp_path / "torn" / "policy")
    assert [line["step"] for line in metrics(tmp_path / "torn" / "policy")] == [1, 2, 3, 4, 5, 6]


def test_the_number_of_passes_changes_the_critic_by_rounding_only(chain: Path, ppo: Path, tmp_path: Path) -> None:
    visited = load_visited_states(
        open_artefact(ppo / "advantages", ADVANTAGES), open_artefact(chain / "trajectories", TRAJECTORIES)
    )
    found = []
    for size, accumulation in ((4, 4), (16, 1)):
        out = tmp_path / str(size)
        split = {"per_device_batch_size": size, "gradient_accumulation_steps": accumulation, "adam_epsilon": 1e-4}
        train.run(settings(ppo / "advantages", out, **split))
        scored = dict(score_states(open_critic(out / "critic", device="cpu"), list(visited.values())))
        found.append(np.concatenate([scored[index] for index in sorted(scored)]))
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-4)
    assert np.abs(found[0]).max() > 1e-3


def test_invalid_inputs_are_refused_before_any_work(chain: Path, policy: Path, ppo: Path, tmp_path: Path) -> None:
    out = tmp_path / "policy"
    with pytest.raises(UserError, match=r"was not made by one critic.*omit --critic-learning-rate"):
        train.run(settings(chain / "advantages", out))
    with pytest.raises(UserError, match="--critic requires --critic-learning-rate"):
        settings(ppo / "advantages", out, critic_learning_rate=None, critic=str(policy))
    with pytest.raises(UserError, match="omit --replay"):
        settings(ppo / "advantages", out, replay=4)
    both = train.Config(advantages=(chain / "advantages", ppo / "advantages"), out=out, critic_learning_rate=1e-3)
    with pytest.raises(UserError, match="expected one ADVANTAGES, got 2"):
        train.run(both)
    shutil.copytree(policy, tmp_path / "critic")
    estimate_advantages(tmp_path / "advantages", ppo / "cutpoints", tmp_path / "critic")
    (tmp_path / "critic" / "generation_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"the critic at .*critic has changed since"):
        train.run(settings(tmp_path / "advantages", out))
    shutil.rmtree(tmp_path / "critic")
    with pytest.raises(UserError, match=r"is no longer at .*critic: pass --critic PATH"):
        train.run(settings(tmp_path / "advantages", out))
    assert not out.exists()


def test_a_given_critic_learns_from_the_values_of_rollouts(chain: Path, policy: Path, tmp_path: Path) -> None:
    """A critic can start from Monte Carlo values at the boundaries, with V̂(end) as the return of each segment."""
    train.run(settings(chain / "advantages", tmp_path / "policy", critic=str(policy)))
    assert (tmp_path / "policy" / "critic" / FILES[1]).is_file()
    assert metrics(tmp_path / "policy")[-1]["critic/loss"] > 0
