"""`spo train --token-metrics`: the kept tokens of every step, as pandas reads them, against metrics and inputs."""

# The types of pandas are wider than what its methods return:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from stages.core.errors import FingerprintMismatch
from stages.shards.origin import trace_back
from stages.shards.parts import open_artefact
from stages.shards.schemas import TOKEN_METRICS, TRAJECTORIES
from stages.train import Config, run
from tests.chains import cut, footer, rows, sample, value
from tests.test_train import Stop, attempt, distance, metrics, save_model, settings, write_chain
from tests.test_train_trees import write_trees

PART = "part-00000-of-00001.parquet"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "base", seed=0)


@pytest.fixture(scope="module")
def chain(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chain(tmp_path_factory.mktemp("chain"), model)


def train(chain: Path, out: Path, **changes: Any) -> pandas.DataFrame:
    """Train with --token-metrics, and return what pandas reads."""
    run(settings(chain, out, token_metrics=True, **changes))
    return pandas.read_parquet(out / "token-metrics")


def assert_tokens_are_those_of(table: pandas.DataFrame, artefact: Path, key: str = "trajectory_id") -> None:
    """Assert that each token is that of its row, and that the sampler's log-probability is the recorded one."""
    by_name = {row[key]: row for row in rows(artefact)}
    assert len(table)
    for row in table.itertuples():
        source = by_name[row.trajectory_id]
        assert row.token_id == source["token_ids"][row.position]
        assert row.sampler_logprob == np.float32(source["logprobs"][row.position])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"packing": True, "entropy_bonus": 0.01},
        {"whiten": "micro-batch"},
        {"mask": "random", "mask_fraction": 0.5},
        {"loss": "gspo", "epsilon": 0.001},
        {"loss": "segment-ratio", "epsilon": 0.001, "dual_clip": 1.001},
        {"loss": "cispo", "epsilon": 0.01},
        {"loss": "dppo", "epsilon": 0.0005},
        {"loss": "clip-cov", "epsilon": 0.01},
        {"old_logprobs": "recorded"},
        {"loss": "distill", "beta": 0.1},
    ],
    ids=str,
)
def test_their_means_are_the_metrics_of_each_step(chain: Path, tmp_path: Path, changes: dict[str, Any]):
    table = train(chain, tmp_path / "policy", epochs=2, **changes)
    lines = metrics(tmp_path / "policy")
    assert table.columns.tolist() == list(TOKEN_METRICS.names)
    assert table.isna().sum().sum() == 0
    assert table["step"].unique().tolist() == [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line, (_, own) in zip(lines, table.groupby("step"), strict=True):
        assert len(own) == line["tokens/trained"]
        assert own["entropy"].mean() == pytest.approx(line["entropy"], rel=1e-5)
        assert own["ratio"].mean() == pytest.approx(line["ratio/mean"], rel=1e-6)
        if "clip_ratio/region_mean" in line:
            assert own["clipped"].mean() == pytest.approx(line["clip_ratio/region_mean"])
        if changes.get("loss") not in ("gspo", "segment-ratio"):
            np.testing.assert_allclose(own["ratio"], np.exp(own["new_logprob"] - own["old_logprob"]), rtol=1e-5)
    if "epsilon" in changes:
        assert table["clipped"].any()
    assert_tokens_are_those_of(table, chain / "trajectories")


def test_the_first_step_sees_ratios_of_1_and_whitened_advantages(chain: Path, tmp_path: Path):
    table = train(chain, tmp_path / "policy")
    first = table[table["step"] == 1]
    assert (first["ratio"] == 1).all()
    assert (first["old_logprob"] == first["new_logprob"]).all()
    assert (table.loc[table["step"] == 2, "ratio"] != 1).any()
    np.testing.assert_allclose(first["new_logprob"], first["sampler_logprob"], atol=1e-5)
    segments = pandas.read_parquet(chain / "advantages").explode("cutpoints").dropna(subset=["cutpoints"])
    joined = first.merge(segments, left_on=["trajectory_id", "position"], right_on=["trajectory_id", "cutpoints"])
    assert len(joined) == len(first)
    raw, seen = joined["advantage_y"], joined["advantage_x"]
    np.testing.assert_allclose(seen, (raw - raw.mean()) / raw.std(ddof=1), atol=1e-6)


def test_it_is_an_artefact_that_leads_back_to_its_trajectories(chain: Path, tmp_path: Path):
    train(chain, tmp_path / "policy")
    artefact = open_artefact(tmp_path / "policy" / "token-metrics")
    assert artefact.schema is TOKEN_METRICS
    assert trace_back(artefact, TRAJECTORIES).directory.resolve() == (chain / "trajectories").resolve()
    found, policy = (
        footer(tmp_path / "policy" / "token-metrics" / PART),
        json.loads((tmp_path / "policy" / "spo.json").read_text()),
    )
    assert (found["stage"], found["config"], found["part"]) == (TOKEN_METRICS.stage, policy["config"], [0, 1])
    assert artefact.locate(found["model"]["path"]) == (tmp_path / "policy" / policy["model"]["path"]).resolve()


def test_it_changes_neither_the_weights_nor_the_fingerprint_of_calls_without_it(chain: Path, tmp_path: Path):
    train(chain, tmp_path / "with")
    run(settings(chain, tmp_path / "without"))
    assert distance(tmp_path / "with", tmp_path / "without") == 0.0
    assert not (tmp_path / "without" / "token-metrics").exists()
    with pytest.raises(FingerprintMismatch, match="token_metrics: found nothing, requested True"):
        run(settings(chain, tmp_path / "without", token_metrics=True))


def test_a_killed_run_ends_with_the_same_bytes(chain: Path, tmp_path: Path):
    given = {"epochs": 2, "save_steps": 2, "token_metrics": True}
    (tmp_path / "whole").mkdir()
    run(settings(chain, tmp_path / "whole" / "policy", **given))
    config = settings(chain, tmp_path / "torn" / "policy", **given)
    assert not attempt(config, stop=Stop(13, signal.SIGKILL))  # in step 4, after the checkpoint of step 2
    unfinished = tmp_path / "torn" / ".policy.partial"
    assert len(list((unfinished / "token-metrics").glob("step-*.parquet"))) == 4
    assert [path.name for path in unfinished.glob("step-*")] == ["step-00000002"]
    run(config)
    whole, torn = (tmp_path / name / "policy" / "token-metrics" / PART for name in ("whole", "torn"))
    assert whole.read_bytes() == torn.read_bytes()


def test_tokens_of_trees_and_of_older_iterations_are_named_by_node_and_age(model: Path, tmp_path: Path):
    folders = [write_trees(tmp_path / f"trees{age}", model, seed=age) for age in (1, 0)]
    table = train(
        folders[-1], tmp_path / "policy", advantages=tuple(one / "advantages" for one in folders), packing=True
    )
    assert set(table["age"]) == {0, 1}
    for age, folder in zip((1, 0), folders, strict=True):
        assert_tokens_are_those_of(table[table["age"] == age], folder / "trajectories")


def test_tokens_of_kept_rollouts_are_named_by_rollout(tmp_path: Path):
    policy = save_model(tmp_path / "policy", seed=0)
    sample(tmp_path / "t", policy, num_questions=2, num_generations=2, max_tokens=12)
    cut(tmp_path / "cutpoints", tmp_path / "t", interval=2)
    value(tmp_path / "advantages", tmp_path / "cutpoints", keep_rollouts=True)
    config = Config(
        advantages=(tmp_path / "advantages",),
        out=tmp_path / "next",
        train_rollouts="all",
        token_metrics=True,
        threads=1,
        mask="all",
    )
    run(config)
    table = pandas.read_parquet(tmp_path / "next" / "token-metrics")
    names = {row["rollout_id"] for row in rows(tmp_path / "rollouts")}
    of_rollouts = table[table["trajectory_id"].isin(names)]
    assert_tokens_are_those_of(of_rollouts, tmp_path / "rollouts", "rollout_id")
    assert_tokens_are_those_of(table.drop(of_rollouts.index), tmp_path / "t")


def test_a_call_without_a_token_to_train_on_writes_an_empty_table(model: Path, tmp_path: Path):
    chain = write_chain(tmp_path / "chain", model, keep=0.0)
    table = train(chain, tmp_path / "policy")
    assert table.empty
    assert table.columns.tolist() == list(TOKEN_METRICS.names)
