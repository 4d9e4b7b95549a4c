"""The predicted tokens of a run agree with those that the run samples and trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stages.configs.plan import Config
from stages.core.errors import UserError
from stages.pipeline import iterate, prediction
from stages.pipeline.prediction import Prediction
from stages.reporting import curves
from stages.reporting.sources import find

RECIPE = """
[run]
iterations = {iterations}
task = "arithmetic"
max_tokens = 24
threads = 1
{run}
[rollout]
num_questions = 24
{rollout}
[segment]
{segment}
[estimate]
{estimate}
[train]
learning_rate = 1e-5
epochs = 2
{train}
"""
CHAIN = {"rollout": "num_generations = 2", "segment": "interval = 2", "estimate": "rollouts = 3"}
KEPT = {"estimate": "rollouts = 3\nkeep_rollouts = true", "train": 'train_rollouts = "all"\nmask = "all"'}
TREE = {
    "rollout": 'tree = "3-2"\nsegment_tokens = 5',
    "estimate": 'estimator = "tree"',
    "train": 'mask = "all"',
}
GRPO = {
    "rollout": "num_generations = 4",
    "segment": 'partition = "trajectory"',
    "estimate": 'estimator = "grpo"',
    "train": 'mask = "all"',
}


def recipe(path: Path, policy: Path, iterations: int = 2, /, **tables: str) -> Path:
    given = dict.fromkeys(("rollout", "segment", "estimate", "train"), "") | tables
    run = f'model = "{policy}"\nout = "{path.with_suffix("")}"'
    path.write_text(RECIPE.format(iterations=iterations, run=run, **given))
    return path


@pytest.fixture(scope="module")
def trial(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a short run of SPO-chain."""
    directory = tmp_path_factory.mktemp("plan")
    iterate.run(iterate.Config(recipe=recipe(directory / "trial.toml", policy, 3, **CHAIN)))
    return directory / "trial"


def figures(found: Prediction) -> dict[str, dict[str, float]]:
    return {
        one.stage: {name: getattr(one.each, name) for name in ("sampled", "trained", "fed")} for one in found.stages
    }


def measured(run: Path) -> dict[str, dict[str, float]]:
    """Return the mean tokens of each stage over the iterations of a run."""
    points = [point["stages"] for point in curves.iterations(find([run])) if point["iteration"] >= 0]
    return {
        stage: {
            name: sum(one[stage].get(name, 0) for one in points) / len(points) for name in ("sampled", "trained", "fed")
        }
        for stage in points[0]
    }


@pytest.mark.slow
@pytest.mark.parametrize("tables", [CHAIN, CHAIN | KEPT, TREE, GRPO], ids=["chain", "kept rollouts", "tree", "GRPO"])
def test_tokens_are_within_a_fifth(tables: dict[str, str], trial: Path, policy: Path, tmp_path: Path):
    path = recipe(tmp_path / "run.toml", policy, **tables)
    iterate.run(iterate.Config(recipe=path))
    # Which nodes have an advantage is known from trees alone, and few have one here: a trial would be too small.
    like = tmp_path / "run" if tables == TREE else trial
    predicted = figures(prediction.run(Config(recipe=path, like=like)))
    found = measured(tmp_path / "run")
    expected = [(stage, name, value) for stage, amounts in found.items() for name, value in amounts.items() if value]
    assert {(stage, name) for stage, name, _ in expected} >= {
        ("rollout", "sampled"),
        ("train", "trained"),
        ("train", "fed"),
    }
    for stage, name, value in expected:
        assert predicted[stage][name] == pytest.approx(value, rel=0.2), (stage, name)


def test_seconds_and_bytes_are_those_of_the_earlier_run(trial: Path, policy: Path, tmp_path: Path):
    same = prediction.run(Config(recipe=recipe(tmp_path / "same.toml", policy, 6, **CHAIN), like=trial))
    points = [point["stages"] for point in curves.iterations(find([trial]))]
    for one in same.stages:
        if one.stage == "segment":  # the log rounds its seconds to 0.0
            continue
        seconds = [point[one.stage]["seconds"] for point in points]
        assert min(seconds) * 0.7 <= one.each.seconds <= max(seconds) * 1.3, one.stage
        assert one.total.seconds == pytest.approx(6 * one.each.seconds)
    size = sum(path.stat().st_size for path in trial.glob("*/trajectories/*.parquet"))
    assert same.stages[0].total.bytes == pytest.approx(2 * size, rel=0.2)
    checkpoints = sum(
        path.stat().st_size for path in trial.glob("*/checkpoint/**/*") if path.suffix in (".safetensors", ".state")
    )
    (train,) = [one for one in same.stages if one.stage == "train"]
    assert train.total.bytes == pytest.approx(2 * checkpoints, rel=0.2)


def test_without_an_earlier_run_responses_are_as_long_as_they_can_be(policy: Path, tmp_path: Path):
    path = recipe(tmp_path / "run.toml", policy, **GRPO)
    found = prediction.run(Config(recipe=path, sampling_rate=100.0))
    assert figures(found)["rollout"]["sampled"] == 24 * 4 * 24
    assert found.stages[0].each.seconds == 24 * 4 * 24 / 100
    assert any("the longest that a response can be" in line for line in found.notes)
    shorter = prediction.run(Config(recipe=path, response_tokens=10))
    assert figures(shorter)["rollout"]["sampled"] == 24 * 4 * 10


def test_a_budget_is_what_its_trees_sample(trial: Path, policy: Path, tmp_path: Path):
    tables = {"rollout": "tree_budget = 40\nsegment_tokens = 5", "estimate": 'estimator = "tree"'}
    found = prediction.run(Config(recipe=recipe(tmp_path / "run.toml", policy, **tables), like=trial))
    amounts = figures(found)
    assert amounts["rollout"]["sampled"] == 24 * 40
    assert amounts["estimate"]["sampled"] == 0
    assert amounts["train"]["fed"] > 2 * 24 * 40 * 0.99


def test_kept_checkpoints_alone_take_disk(policy: Path, tmp_path: Path):
    path = recipe(tmp_path / "run.toml", policy, 10, **GRPO)

    def size(**options: Any) -> float:
        (train,) = [one for one in prediction.run(Config(recipe=path, **options)).stages if one.stage == "train"]
        return train.total.bytes

    assert size(keep_checkpoints=2) == pytest.approx(size() / 5)


def test_a_path_without_trajectories_is_refused(policy: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contains no complete trajectories"):
        prediction.run(Config(recipe=recipe(tmp_path / "run.toml", policy, **GRPO), like=tmp_path / "empty"))
