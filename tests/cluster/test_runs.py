"""Whole runs and commands with a Ray of their own: the bytes of one process, and no process left by a killed driver."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from stages import rollout
from tests.chains import ARITHMETIC
from tests.command_server import Commands
from tests.pipeline.test_iterate import RECIPE, artefacts
from tests.shards.samples import files

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

SPO = (sys.executable, "-c", "from spo_cli.app import main; main()")


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


def test_a_killed_driver_leaves_no_process_and_the_same_command_resumes(policy: Path, tmp_path: Path):
    options = ("--task", "arithmetic", "--task-arg", "operations=1", "--max-tokens", "24", "--threads", "1")
    size = ("--num-questions", "50", "--num-generations", "8", "--chunk-questions", "1", "--max-batch-rows", "1")
    words = (*SPO, "rollout", "-m", str(policy), *options, *size, "--executor", "ray", "--num-workers", "2", "--out")
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 4)):
        process = subprocess.Popen([*words, str(tmp_path / "killed")], stderr=subprocess.DEVNULL)
        before = count_chunks(tmp_path / "killed")
        until(lambda before=before: count_chunks(tmp_path / "killed") > before)
        found = psutil.Process(process.pid).children(recursive=True)
        assert any("guard.py" in " ".join(one.cmdline()) for one in found)
        process.send_signal(number)
        assert process.wait(300) == code
        _, alive = psutil.wait_procs(found, timeout=300)
        assert not alive, alive
    subprocess.run([*words, str(tmp_path / "killed")], check=True, stderr=subprocess.DEVNULL)
    shared: dict[str, Any] = {**ARITHMETIC, "max_tokens": 24, "threads": 1, "num_questions": 50, "num_generations": 8}
    rollout.run(rollout.Config(out=tmp_path / "whole", model=str(policy), **shared))
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def count_chunks(out: Path) -> int:
    return len(list(out.glob(".part-*/chunk-*")))


def until(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it takes too long"
        time.sleep(0.02)
