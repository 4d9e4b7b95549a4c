"""`spo estimate --estimator critic`: values of a learned value head, advantages by GAE."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages import estimate
from stages.core.errors import FingerprintMismatch, UserError
from stages.core.progress import Summary
from stages.models import checkpoints, loading
from stages.optimization.critic import Critic, CriticExample, open_critic, update_critic
from stages.optimization.optimizer import AdamWConfig
from tests.chains import cut, footer, rows, with_context


@pytest.fixture(scope="module")
def critic(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the policy with a value head after three training steps."""
    critic, tokens = open_critic(policy, AdamWConfig(), device="cpu"), np.arange(40, 60, dtype=np.int32)
    for _ in range(3):
        update_critic(
            critic, [CriticExample(tokens, np.arange(1, 20), np.zeros(19), np.linspace(0, 1, 19))], 1, 1e-2, None
        )
    directory = tmp_path_factory.mktemp("critic") / "critic"
    critic.save(directory, loading.load_tokenizer(policy))
    return directory


def estimate_with(out: Path, cutpoints: Path, critic: Path | None, **options: Any) -> Summary:
    given: dict[str, Any] = {"estimator": "critic", "critic": critic and str(critic), "threads": 1} | options
    return estimate.run(estimate.Config(out=out, cutpoints=cutpoints, **given))


def by_trajectory(artefact: Path) -> dict[str, list[dict[str, Any]]]:
    return {name: list(group) for name, group in groupby(rows(artefact), lambda row: row["trajectory_id"])}


def state_value(critic: Critic, row: dict[str, Any], start: int) -> float:
    """Return V of one state, computed without other states."""
    ids = torch.tensor([row["prompt_token_ids"] + row["token_ids"][:start]])
    with torch.no_grad():
        hidden = critic.model.backbone(input_ids=ids).last_hidden_state[0, -1]
        return critic.model.head(hidden).item()


@pytest.mark.parametrize("partition", [{"partition": "token"}, {"interval": 2}, {"partition": "trajectory"}])
def test_values_are_those_of_segment_starts_and_advantages_are_gae(
    chain: Path, critic: Path, tmp_path: Path, partition: dict[str, Any]
) -> None:
    cut(tmp_path / "cutpoints", chain / "trajectories", **partition)
    summary = estimate_with(tmp_path / "advantages", tmp_path / "cutpoints", critic, gae_lambda=0.8, gamma=0.9)
    sampled = {row["trajectory_id"]: row for row in rows(chain / "trajectories")}
    found, opened = by_trajectory(tmp_path / "advantages"), open_critic(critic, device="cpu")
    assert list(found) == list(sampled)
    assert summary.rows == len(rows(tmp_path / "cutpoints"))
    for name, segments in found.items():
        later = 0.0
        for number in reversed(range(len(segments))):  # the recursion of the paper, one step at a time
            row, last = segments[number], number + 1 == len(segments)
            end = sampled[name]["reward"] if last else segments[number + 1]["value_start"]
            assert row["value_start"] == pytest.approx(state_value(opened, sampled[name], row["start"]), abs=1e-5)
            assert row["value_end"] == end
            later = (end if last else 0.9 * end) - row["value_start"] + 0.9 * 0.8 * later
            assert row["advantage"] == pytest.approx(later, abs=1e-12)
            assert (row["num_rollouts"], row["rewards"], row["value_std"]) == (0, [], None)
    assert len({row["value_start"] for segments in found.values() for row in segments}) > 10


def test_a_model_without_a_value_head_gives_zero_values_and_a_note(chain: Path, policy: Path, tmp_path: Path) -> None:
    summary = estimate_with(tmp_path / "advantages", chain / "cutpoints", policy, gae_lambda=1.0)
    assert any("has no value head: it starts at zero" in note for note in summary.notes)
    reward = {row["trajectory_id"]: row["reward"] for row in rows(chain / "trajectories")}
    for row in rows(tmp_path / "advantages"):
        assert row["value_start"] == 0.0
        assert row["advantage"] == reward[row["trajectory_id"]]


def test_the_lineage_names_the_critic_and_only_the_options_it_reads(chain: Path, critic: Path, tmp_path: Path) -> None:
    assert not estimate_with(tmp_path / "advantages", chain / "cutpoints", critic).notes
    (part,) = (tmp_path / "advantages").glob("*.parquet")
    lineage = footer(part)
    assert lineage["config"] == {"estimator": "critic", "gae_lambda": 0.95, "gamma": 1.0, "dtype": "auto"}
    assert [source["stage"] for source in lineage["inputs"]] == ["segment", "rollout", "critic"]
    named = lineage["inputs"][2]
    assert (tmp_path / "advantages" / named["path"]).resolve() == critic.resolve()
    assert named["fingerprint"] == checkpoints.digest(critic)
    assert estimate_with(tmp_path / "advantages", chain / "cutpoints", critic, seed=5, model="elsewhere").up_to_date
    with pytest.raises(FingerprintMismatch, match=r"gae_lambda: found 0\.95, requested 0\.5"):
        estimate_with(tmp_path / "advantages", chain / "cutpoints", critic, gae_lambda=0.5)


def test_another_critic_is_another_fingerprint(chain: Path, critic: Path, policy: Path, tmp_path: Path) -> None:
    estimate_with(tmp_path / "advantages", chain / "cutpoints", critic)
    with pytest.raises(FingerprintMismatch):
        estimate_with(tmp_path / "advantages", chain / "cutpoints", policy)


def test_chunks_change_nothing_beyond_rounding(chain: Path, critic: Path, tmp_path: Path) -> None:
    for size in (1, 64):
        estimate_with(tmp_path / str(size), chain / "cutpoints", critic, chunk_trajectories=size)
    one, other = rows(tmp_path / "1"), rows(tmp_path / "64")
    for row, same in zip(one, other, strict=True):
        assert row["advantage"] == pytest.approx(same["advantage"], abs=1e-5)


def test_wrong_options_are_refused_before_any_work(chain: Path, critic: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--estimator critic needs --critic"):
        estimate_with(tmp_path / "advantages", chain / "cutpoints", None)
    with pytest.raises(UserError, match="--critic is an option of --estimator critic; monte-carlo does not read it"):
        estimate_with(tmp_path / "advantages", chain / "cutpoints", critic, estimator="monte-carlo")
    with pytest.raises(UserError, match="rollouts is an option of --estimator monte-carlo"):
        estimate_with(tmp_path / "advantages", chain / "cutpoints", critic, rollouts=4)
    with pytest.raises(UserError, match="gae-lambda must be at most 1"):
        estimate_with(tmp_path / "advantages", chain / "cutpoints", critic, gae_lambda=2.0)
    narrow = with_context(critic, tmp_path / "narrow", 8)
    with pytest.raises(UserError, match=r"has a state longer than the context of the critic .*narrow, 8 tokens"):
        estimate_with(tmp_path / "advantages", chain / "cutpoints", narrow)
    assert not list((tmp_path / "advantages").glob("*.parquet"))
