"""Whole runs and commands with a Ray of their own: the bytes of one process, and no process left by a killed driver."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stages import rollout
from tests.chains import ARITHMETIC
from tests.cluster.drivers import Driver, until
from tests.command_server import Commands
from tests.pipeline.test_iterate import RECIPE, artefacts
from tests.recipes import small_recipe
from tests.shards.samples import files

OVERLAPPED = small_recipe(
    rollout={"num_questions": 40, "num_generations": 4, "chunk_questions": 1, "max_batch_rows": 1},
    train={"epochs": 30, "per_device_batch_size": 1, "save_steps": 40},
)
"""Training and sampling that take seconds each."""

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]


@pytest.fixture(scope="module")
def spo() -> Iterator[Commands]:
    """Commands in processes of their own: this one is connected to the Ray of the other tests."""
    with Commands() as commands:
        yield commands


def test_a_run_on_workers_has_the_bytes_of_one_process(policy: Path, spo: Commands, tmp_path: Path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE + "\n[ray]\nsamplers = 2\n")
    words = ("run", recipe, "--set", f"run.model={policy}", "--executor")
    for executor in ("ray", "local"):
        spo.finish(*words, executor, "--out", tmp_path / executor)
    found, expected = artefacts(tmp_path / "ray"), artefacts(tmp_path / "local")
    assert found.keys() == expected.keys()
    assert [name for name in expected if expected[name] != found[name]] == []
    assert {path.name for path in (tmp_path / "ray/_logs/workers").iterdir()} == {"sampler-0.log", "sampler-1.log"}


def test_a_killed_or_interrupted_driver_leaves_no_process_and_the_same_command_resumes(policy: Path, tmp_path: Path):
    options = ("--task", "arithmetic", "--task-arg", "operations=1", "--max-tokens", "24", "--threads", "1")
    size = ("--num-questions", "50", "--num-generations", "8", "--chunk-questions", "1", "--max-batch-rows", "1")
    out = tmp_path / "killed"
    words = ("rollout", "-m", policy, *options, *size, "--executor", "ray", "--num-workers", "2", "--out", out)
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 4)):
        before = count_chunks(out)
        with Driver(words) as driver:
            until(lambda before=before: count_chunks(out) > before, 300)
            assert len(driver.workers()) == 2
            assert all(name in str(driver.processes()) for name in ("guard.py", "gcs_server", "raylet"))
            driver.signal(number)
            assert driver.wait(300) == code
            ends = [line for line in driver.lines if "stopped by" in line or "Traceback" in line]
            assert len(ends) == (code == 4)
            assert ends == [] or ends[0].startswith("spo rollout: stopped by SIGINT")
    with Driver(words) as driver:
        assert driver.wait(300) == 0
    shared: dict[str, Any] = {**ARITHMETIC, "max_tokens": 24, "threads": 1, "num_questions": 50, "num_generations": 8}
    rollout.run(rollout.Config(out=tmp_path / "whole", model=str(policy), **shared))
    assert files(out) == files(tmp_path / "whole")


def test_a_run_that_samples_while_it_trains_has_the_bytes_of_one_process_after_kills(
    policy: Path, spo: Commands, tmp_path: Path
):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(OVERLAPPED + "\n[ray]\nsamplers = 2\n")
    words = ("run", recipe, "--set", f"run.model={policy}", "--overlap", "1", "--executor")
    spo.finish(*words, "local", "--out", tmp_path / "local")
    out = tmp_path / "ray"
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 4)):
        before = count_chunks(out / "001/trajectories")
        with Driver((*words, "ray", "--out", out)) as driver:
            until(lambda before=before: count_chunks(out / "001/trajectories") > before, 300)
            assert not (out / "000/checkpoint").exists(), "training goes on"
            driver.signal(number)
            assert driver.wait(300) == code
            assert "Traceback" not in str(driver.lines)
    with Driver((*words, "ray", "--out", out)) as driver:
        assert driver.wait(300) == 0
    found, expected = artefacts(out), artefacts(tmp_path / "local")
    assert found.keys() == expected.keys()
    assert [name for name in expected if expected[name] != found[name]] == []


def count_chunks(out: Path) -> int:
    return len(list(out.glob(".part-*/chunk-*")))
