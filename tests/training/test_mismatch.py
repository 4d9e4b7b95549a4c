"""Test the mismatch of sampler and trainer in `spo train`: how it is measured, and the warning if it is large."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from spo_cli import show
from stages.models import checkpoints
from stages.optimization.step import update
from stages.optimization.torch import TorchEngine
from stages.shards.lineage import describe, model_source, read_lineage
from stages.shards.parts import artefact_source, open_artefact
from stages.shards.schemas import ADVANTAGES, TRAJECTORIES
from stages.train import run
from stages.training.mismatch import summarize, warn
from tests.optimization.test_torch import OBJECTIVE, make_examples, make_model
from tests.shards.samples import Notes
from tests.test_train import Sampling, make_rows, metrics, save_model, settings, write_parts

FACTOR = 1.25
"""Factor between the recorded probabilities of a skewed chain and the true ones."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "base", seed=0)


@pytest.fixture(scope="module")
def skewed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_skewed(tmp_path_factory.mktemp("skewed"), model)


def write_skewed(folder: Path, model: Path, sampler: Path | None = None) -> Path:
    """Write artefacts whose recorded log-probabilities are alternately too high and too low by log FACTOR."""
    trajectories, advantages = make_rows(model)
    column = [
        [value + math.log(FACTOR) * (-1) ** place for place, value in enumerate(row)]
        for row in trajectories["logprobs"].to_pylist()
    ]
    place = TRAJECTORIES.names.index("logprobs")
    skewed = trajectories.set_column(place, TRAJECTORIES.arrow.field(place), pa.array(column, pa.list_(pa.float32())))
    named = model_source(sampler or model, checkpoints.digest(sampler or model), folder / "trajectories")
    lineage = describe("rollout", TRAJECTORIES, Sampling(), model=named)
    write_parts(folder / "trajectories", lineage, TRAJECTORIES, skewed.cast(TRAJECTORIES.arrow), 1)
    made_from = artefact_source(open_artefact(folder / "trajectories", TRAJECTORIES), folder / "advantages")
    write_parts(
        folder / "advantages",
        describe("estimate", ADVANTAGES, Sampling(), inputs=(made_from,)),
        ADVANTAGES,
        advantages,
        1,
    )
    return folder


def compared(directory: Path) -> list[float]:
    return [line.get("mismatch/tokens", 0.0) for line in metrics(directory)]


def test_the_embedded_sampler_agrees_with_the_trainer(chain: Path, tmp_path: Path):
    notes = Notes()
    summary = run(settings(chain, tmp_path / "policy", epochs=2), notes)
    lines = metrics(tmp_path / "policy")
    assert all(line["mismatch/tokens"] == line["tokens/trained"] for line in lines)
    assert all(line["mismatch/logp_difference_max"] < 1e-4 for line in lines)
    assert 1.0 <= summary.figures["mismatch/error"] < 1 + 1e-5
    assert 0.0 <= summary.figures["mismatch/kl"] < 1e-8
    assert summary.figures["mismatch/truncated"] == 0.0
    assert not [line for line in (*notes.lines, *summary.notes) if "disagree" in line]


@pytest.mark.parametrize("old", ["recompute", "recorded"])
def test_a_large_mismatch_is_measured_and_reported_with_a_remedy(
    skewed: Path, tmp_path: Path, old: str, capsys: pytest.CaptureFixture[str]
):
    notes, out = Notes(), tmp_path / "policy"
    summary = run(settings(skewed, out, old_logprobs=old), notes)
    assert summary.figures["mismatch/error"] == pytest.approx(FACTOR, abs=1e-4)
    assert summary.figures["mismatch/logp_difference_max"] == pytest.approx(math.log(FACTOR), abs=1e-4)
    assert summary.figures["mismatch/truncated"] == 0.0  # 1.25 is below 2
    for lines in (notes.lines, summary.notes):
        assert any("off by a factor of 1.2500" in line and "--dtype" in line for line in lines)
    show.run(show.Config(path=out))
    shown = capsys.readouterr().out
    assert "mismatch" in shown
    assert "off by a factor of 1.2500" in " ".join(shown.split())
    show.run(show.Config(path=out, json=True))
    figures = json.loads(capsys.readouterr().out)["statistics"]["mismatch"]
    assert figures["error"] == summary.figures["mismatch/error"]


def test_with_recorded_log_probabilities_only_the_first_step_is_compared(skewed: Path, tmp_path: Path):
    """After the first step, the policy differs from the one that sampled."""
    run(settings(skewed, tmp_path / "recorded", old_logprobs="recorded", epochs=2))
    first, *later = compared(tmp_path / "recorded")
    assert first > 0
    assert not any(later)


def test_only_tokens_that_the_policy_sampled_are_compared(model: Path, skewed: Path, tmp_path: Path):
    other = save_model(tmp_path / "other", seed=1)
    older = write_skewed(tmp_path / "older", model, sampler=other)
    run(settings(skewed, tmp_path / "alone"))
    run(settings(skewed, tmp_path / "both", advantages=(older / "advantages", skewed / "advantages")))
    assert sum(compared(tmp_path / "both")) == sum(compared(tmp_path / "alone")) > 0
    assert sum(line["tokens/trained"] for line in metrics(tmp_path / "both")) == 2 * sum(compared(tmp_path / "alone"))
    run(settings(skewed, tmp_path / "named", model=str(other)))
    assert not any(compared(tmp_path / "named"))
    lineage = read_lineage(tmp_path / "named")
    assert lineage is not None
    assert not [name for name in lineage.summary if name.startswith("mismatch")]


def test_a_temperature_other_than_the_sampling_temperature_is_visible(model: Path, skewed: Path, tmp_path: Path):
    run(settings(skewed, tmp_path / "right"))
    right = max(line["mismatch/logp_difference_max"] for line in metrics(tmp_path / "right"))
    run(settings(skewed, tmp_path / "wrong", temperature=2.0))
    assert max(line["mismatch/logp_difference_max"] for line in metrics(tmp_path / "wrong")) > 2 * right


def test_the_number_of_passes_does_not_matter():
    generator = np.random.default_rng(1)
    examples = [
        dataclasses.replace(one, sampled=one.old + generator.normal(size=one.kept.size) if number % 2 else None)
        for number, one in enumerate(make_examples())
        if one.old is not None
    ]
    found = [figures(update(TorchEngine(make_model()), examples, OBJECTIVE, size, 0.0)) for size in (1, 3, 7)]
    differences = np.concatenate([one.sampled - one.old for one in examples if one.sampled is not None])  # pyright: ignore
    assert found[0]["mismatch/logp_difference_max"] == pytest.approx(np.abs(differences).max())
    assert found[0]["mismatch/logp_difference_mean"] == pytest.approx(np.abs(differences).mean())
    assert found[0]["mismatch/truncated"] == pytest.approx((-differences > math.log(2)).mean())
    for other in found[1:]:
        assert other == pytest.approx(found[0])


def figures(line: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name.startswith("mismatch/")}


def test_steps_are_weighted_by_their_tokens():
    def line(tokens: float, mean: float, largest: float) -> dict[str, float]:
        values: dict[str, Any] = {"mismatch/tokens": tokens, "mismatch/logp_difference_mean": mean, "mismatch/kl": mean}
        return values | {"mismatch/truncated": 0.0, "mismatch/logp_difference_max": largest}

    found = summarize([line(10, 0.1, 0.5), {"loss": 1.0}, line(30, 0.02, 0.9)])
    # (10 · 0.1 + 30 · 0.02) / 40 = 0.04
    assert found["mismatch/error"] == pytest.approx(math.exp(0.04))
    assert found["mismatch/logp_difference_max"] == 0.9
    assert not warn(found)
    assert warn(found | {"mismatch/error": 1.06})
    assert summarize([{"loss": 1.0}]) == {}
    assert not warn({})
