"""Test `spo train` on trees and on several iterations: packing, replay, resuming and refusals."""

from __future__ import annotations

import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from stages.core.config import option
from stages.core.errors import UserError
from stages.models import checkpoints, loading
from stages.shards.lineage import describe, model_source, read_lineage
from stages.shards.parts import artefact_source, open_artefact
from stages.shards.schemas import ADVANTAGES, TRAJECTORIES
from stages.train import Config, run
from tests.test_train import (
    TEMPERATURE,
    Stop,
    assert_identical,
    attempt,
    distance,
    metrics,
    save_model,
    write_parts,
)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    temperature: float = option("Temperature.", default=TEMPERATURE)
    seed: int = option("Seed.", default=0)


SHAPE, LENGTH = (3, 2, 2), 5


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return three policies that differ a little, as of three iterations."""
    folder = tmp_path_factory.mktemp("models")

    def nudge(amount: float) -> Any:
        return lambda network: [value.add_(amount * torch.sin(value * 1e3)) for value in network.parameters()]

    return [save_model(folder / f"policy{age}", 0, nudge(0.003 * age)) for age in range(3)]


@pytest.fixture(scope="module")
def iterations(models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return three folders with trajectories/ and advantages/ of two trees each, the oldest first."""
    folder = tmp_path_factory.mktemp("iterations")
    return [write_trees(folder / f"{number:03d}", model, seed=number) for number, model in enumerate(models)]


def write_trees(folder: Path, model: Path, *, seed: int, questions: int = 2, signal: float = 0.8) -> Path:
    """Write trees with the log-probabilities of the model; some nodes have no row in the advantages."""
    network = loading.load_model(model, torch.device("cpu"), torch.float32)
    generator = np.random.default_rng(seed)
    trajectories: list[dict[str, Any]] = []
    advantages: list[dict[str, Any]] = []

    def grow(prompt: list[int], path: list[int], name: str, parent: str | None, left: tuple[int, ...]) -> None:
        for child in range(left[0] if left else 0):
            tokens = generator.integers(32, 127, size=LENGTH + int(generator.integers(3))).tolist()
            identifier = f"{name}{child}"
            context = torch.tensor([prompt + path + tokens])
            with torch.no_grad():
                logits = network(input_ids=context).logits[0, -len(tokens) - 1 : -1] / TEMPERATURE
            logprobs = logits.log_softmax(-1).gather(-1, torch.tensor(tokens)[:, None]).squeeze(-1).tolist()
            leaf = len(left) == 1
            row = dict.fromkeys(TRAJECTORIES.names)
            row |= {"trajectory_id": identifier, "parent_id": parent, "question_id": name.split("/")[0]}
            row |= {"depth": identifier.count("."), "finish_reason": "stop" if leaf else "segment", "reference": "7"}
            row |= {"prompt_token_ids": prompt, "token_ids": tokens, "logprobs": logprobs}
            trajectories.append(row | {"reward": float(generator.integers(2)) if leaf else None})
            if generator.random() < signal:
                cutpoints = np.flatnonzero(generator.random(len(tokens)) < 0.5).tolist()
                row = dict.fromkeys(ADVANTAGES.names)
                row |= {"trajectory_id": identifier, "segment_index": 0, "start": 0, "end": len(tokens)}
                row |= {"cutpoints": cutpoints, "value_start": 0.5, "value_end": 0.5, "num_rollouts": 0, "rewards": []}
                advantages.append(row | {"advantage": float(generator.normal())})
            grow(prompt, path + tokens, f"{identifier}.", identifier, left[1:])

    for question in range(questions):
        grow(generator.integers(32, 127, size=6).tolist(), [], f"q{question}/", None, SHAPE)
    sampler = model_source(model, checkpoints.digest(model), folder / "trajectories")
    lineage = describe("rollout", TRAJECTORIES, Sampling(seed=seed), model=sampler)
    table = pa.Table.from_pylist(trajectories, schema=TRAJECTORIES.arrow)
    write_parts(folder / "trajectories", lineage, TRAJECTORIES, table, 1)
    made_from = artefact_source(open_artefact(folder / "trajectories", TRAJECTORIES), folder / "advantages")
    lineage = describe("estimate", ADVANTAGES, Sampling(seed=seed), inputs=(made_from,))
    table = pa.Table.from_pylist(advantages, schema=ADVANTAGES.arrow)
    write_parts(folder / "advantages", lineage, ADVANTAGES, table, 1)
    return folder


def rows(*folders: Path) -> int:
    return sum(open_artefact(folder / "advantages", ADVANTAGES).rows for folder in folders)


def settings(out: Path, *folders: Path, **changes: Any) -> Config:
    given: dict[str, Any] = {
        "advantages": tuple(folder / "advantages" for folder in folders),
        "out": out,
        "learning_rate": 1e-3,
        "per_device_batch_size": 4,
        "gradient_accumulation_steps": 3,
        "beta": 0.01,
        "device": "cpu",
        "threads": 1,
        "adam_epsilon": 1e-4,
    }
    return Config(**given | changes)


def test_packing_gives_the_same_weights_with_fewer_forward_tokens(iterations: list[Path], tmp_path: Path) -> None:
    packed = run(settings(tmp_path / "packed", iterations[0], mask="all"))
    plain = run(settings(tmp_path / "plain", iterations[0], mask="all", packing=False))
    assert packed.rows == plain.rows == rows(iterations[0])
    assert distance(tmp_path / "packed", tmp_path / "plain") < 1e-6
    assert packed.figures["tokens/fed_per_trained"] < 0.6 * plain.figures["tokens/fed_per_trained"]
    for one, other in zip(metrics(tmp_path / "packed"), metrics(tmp_path / "plain"), strict=True):
        assert one["tokens/trained"] == other["tokens/trained"]
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
    assert metrics(tmp_path / "packed")[0]["ratio/mean"] == pytest.approx(1.0, abs=1e-5)


def test_without_replay_all_segments_of_several_artefacts_are_trained(iterations: list[Path], tmp_path: Path) -> None:
    summary = run(settings(tmp_path / "policy", *iterations, mask="all"))
    assert summary.rows == rows(*iterations)
    lineage = read_lineage(tmp_path / "policy")
    assert lineage is not None
    assert [item.stage for item in lineage.inputs] == ["estimate", "rollout"] * 3
    assert lineage.config["ages"] == [2, 1, 0]


def test_the_denominator_of_a_ratio_is_the_policy_that_sampled(
    iterations: list[Path], models: list[Path], tmp_path: Path
) -> None:
    """Recorded and recomputed log-probabilities of the samplers agree, and differ from those of the policy."""
    given = {"mask": "all", "model": str(models[2])}
    run(settings(tmp_path / "recompute", *iterations, **given))
    run(settings(tmp_path / "recorded", *iterations, old_logprobs="recorded", **given))
    run(settings(tmp_path / "own", iterations[2], **given))
    recompute, recorded = metrics(tmp_path / "recompute")[0], metrics(tmp_path / "recorded")[0]
    for name in ("ratio/mean", "approx_kl"):
        assert recompute[name] == pytest.approx(recorded[name], abs=1e-5), name
    assert recompute["approx_kl"] > 1e-4
    assert metrics(tmp_path / "own")[0]["approx_kl"] < 1e-9


def test_under_replay_every_segment_is_trained_once_or_counted_as_unused(
    iterations: list[Path], models: list[Path], tmp_path: Path
) -> None:
    later = [write_trees(tmp_path / f"later{number}", models[2], seed=number, questions=1) for number in (3, 4)]
    folders, trained, never, aged_out, waiting = [*iterations, *later], 0, 0, 0, 0
    notes: tuple[str, ...] = ()
    for now in range(len(folders)):
        out, given = tmp_path / f"policy{now}", {"replay": 3, "max_per_question": 5, "model": str(models[2])}
        summary = run(settings(out, *folders[: now + 1], **given))
        lineage = read_lineage(out)
        assert lineage is not None
        assert len(lineage.inputs) == 2 * min(now + 1, 3)
        assert summary.rows <= 5 * 2  # the two questions come back in every iteration
        trained, aged_out = trained + lineage.counts["trajectories"], aged_out + lineage.counts["aged_out"]
        never += lineage.counts["crowded_out"]
        waiting, notes = lineage.counts["waiting"], summary.notes
    assert trained + never + aged_out + waiting == rows(*folders)
    assert min(never, aged_out) > 0
    assert "skipped 2 artefacts from outside the replay window of 3 iterations" in notes


def test_a_lost_artefact_does_not_change_the_age_of_the_others(
    iterations: list[Path], models: list[Path], tmp_path: Path
) -> None:
    old, _, new = (folder / "advantages" for folder in iterations)
    given = {"replay": 3, "max_per_question": 5, "model": str(models[2])}
    run(settings(tmp_path / "held", advantages=(old, Path("-"), new), **given))
    run(settings(tmp_path / "closed", advantages=(old, new), **given))
    held, closed = read_lineage(tmp_path / "held"), read_lineage(tmp_path / "closed")
    assert held is not None
    assert closed is not None
    assert (held.config["ages"], closed.config["ages"]) == ([2, 0], [1, 0])
    with pytest.raises(UserError, match="the last of the advantages is the current iteration"):
        run(settings(tmp_path / "no", advantages=(old, Path("-"))))


def test_the_limit_of_samples_per_iteration_holds(iterations: list[Path], tmp_path: Path) -> None:
    summary = run(settings(tmp_path / "policy", iterations[0], samples_per_iteration=10))
    lineage = read_lineage(tmp_path / "policy")
    assert lineage is not None
    assert summary.rows == 10
    assert lineage.counts["beyond_limit"] == rows(iterations[0]) - 10


def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(
    iterations: list[Path], models: list[Path], tmp_path: Path
) -> None:
    """The run has several artefacts, their samplers, a reference that is one of the samplers, and packed rows."""
    given = {"epochs": 2, "save_steps": 1, "reference_model": str(models[0]), "model": str(models[2])}
    (tmp_path / "whole").mkdir()
    run(settings(tmp_path / "whole" / "policy", *iterations, **given))
    config = settings(tmp_path / "torn" / "policy", *iterations, **given)
    assert not attempt(config, stop=Stop(30, signal.SIGKILL))
    for seconds in (0.1, 0.25, 0.4):
        if attempt(config, seconds=seconds):
            break
    run(config)
    assert_identical(tmp_path / "whole" / "policy", tmp_path / "torn" / "policy")


def test_a_critic_on_trees_is_refused_before_any_work(
    iterations: list[Path], models: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="holds nodes of trees, and a critic is trained on whole responses"):
        run(settings(tmp_path / "policy", iterations[0], critic_learning_rate=1e-3, critic=str(models[0])))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("loss", [{"loss": "distill", "beta": 0.1}, {"loss_normalization": "sequence"}])
def test_every_loss_changes_the_policy_and_has_finite_metrics(
    iterations: list[Path], models: list[Path], tmp_path: Path, loss: dict[str, Any]
) -> None:
    run(settings(tmp_path / "policy", iterations[0], epochs=2, **loss))
    assert distance(models[0], tmp_path / "policy") > 1e-5
    assert all(np.isfinite(value) for line in metrics(tmp_path / "policy") for value in line.values())


def test_distillation_reaches_the_advantages(iterations: list[Path], tmp_path: Path) -> None:
    """The loss is ½ A² at the start, where policy and reference are equal, and falls towards 0."""
    given = {"loss": "distill", "beta": 1.0, "epochs": 25, "learning_rate": 3e-3, "mask": "all"}
    run(settings(tmp_path / "policy", iterations[0], gradient_accumulation_steps=16, **given))
    advantages = open_artefact(iterations[0] / "advantages", ADVANTAGES).read_all(["advantage"])["advantage"].to_numpy()
    lines = metrics(tmp_path / "policy")
    assert lines[0]["loss"] == pytest.approx(0.5 * np.mean(advantages**2), rel=1e-3)
    assert lines[-1]["loss"] < 0.3 * lines[0]["loss"]


def test_a_constant_length_scales_the_loss(iterations: list[Path], tmp_path: Path) -> None:
    for name, length in (("10", 10.0), ("20", 20.0)):
        given = {"loss_normalization": "constant", "loss_constant": length, "beta": 0.0}
        run(settings(tmp_path / name, iterations[0], **given))
    assert metrics(tmp_path / "10")[0]["loss"] == pytest.approx(2 * metrics(tmp_path / "20")[0]["loss"], rel=1e-5)


def test_without_any_advantage_the_policy_does_not_change(models: list[Path], tmp_path: Path) -> None:
    folder = write_trees(tmp_path / "flat", models[0], seed=9, signal=0.0)
    summary = run(settings(tmp_path / "policy", folder))
    assert (summary.rows, summary.figures["steps"]) == (0, 0)
    assert distance(models[0], tmp_path / "policy") == 0.0
    run(settings(tmp_path / "next", folder, model=str(tmp_path / "policy")))


def test_the_error_about_a_missing_sampler_names_the_remedy(
    iterations: list[Path], models: list[Path], tmp_path: Path
) -> None:
    gone = shutil.copytree(models[0], tmp_path / "gone")
    folder = write_trees(tmp_path / "old", gone, seed=7, questions=1)
    shutil.rmtree(gone)
    given = {"model": str(models[2])}
    with pytest.raises(UserError, match=r"is no longer at .*gone: pass --old-logprobs recorded"):
        run(settings(tmp_path / "policy", folder, iterations[2], **given))
    run(settings(tmp_path / "policy", folder, iterations[2], old_logprobs="recorded", **given))


def test_the_same_advantages_twice_are_refused(iterations: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="are the same advantages"):
        run(settings(tmp_path / "policy", iterations[0], iterations[0]))
    with pytest.raises(UserError, match="2 advantages but 1 --trajectories"):
        run(settings(tmp_path / "policy", *iterations[:2], trajectories=(iterations[0] / "trajectories",)))


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"loss": "distill", "beta": 0.0}, "--loss distill .* expected --beta greater than 0"),
        ({"loss": "distill", "loss_normalization": "sequence"}, "omit --loss-normalization"),
        ({"loss": "distill", "epsilon_high": 0.3}, "--loss distill clips no ratio"),
        ({"importance_cap": 3.0}, "--importance-cap requires --old-logprobs recorded"),
        ({"value_clip": 0.5}, "--value-clip requires --critic-learning-rate"),
        ({"loss_normalization": "constant"}, "pass --loss-constant"),
        ({"loss_constant": 3.0}, "--loss-constant requires --loss-normalization constant"),
        ({"max_per_question": 3}, "--max-per-question requires --replay"),
        ({"packing": True, "whiten": "micro-batch"}, "--no-packing"),
    ],
)
def test_conflicting_options_are_refused(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        Config(advantages=(Path("a"),), out=Path("b"), **given)
