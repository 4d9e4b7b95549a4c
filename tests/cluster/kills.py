"""Kill workers and commands at random moments: `python -m tests.cluster.kills [WORKERS [COMMANDS [SEED]]]`.

`spo rollout` and `spo estimate` run in turn on two workers of a real Ray (embedded engine, CPU) until 30 workers and 10
commands have been killed; a command gets SIGKILL, SIGTERM or SIGINT, and is started again. Its files must have the
bytes that one process writes, and no process and no temporary file of it may be left. Moments are drawn in processor
time of the process that is killed, so that they fall on starting, sampling and writing alike on a busy machine.
Prints a line for each kill; ends with 1 at the first problem.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Literal

import psutil

from tests.chains import ARITHMETIC, cut, sample, train_small_policy, value
from tests.cluster.drivers import Driver, until
from tests.environment import fix_environment
from tests.shards.samples import files

WORKER_SECONDS, COMMAND_SECONDS = 8.0, 8.0
"""Processor time in which a worker and a command are killed, at the latest: half of it is their start."""
LIMIT = 3600.0
"""Seconds in which a command ends on the busiest machine."""
SIGNALS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 4, signal.SIGINT: 4}
"""Signal to a command → its exit code."""
THRICE = "was lost three times in "

Kill = Literal["worker", "command"]


class Kills:
    """Stages that are killed until no kill is left to do."""

    def __init__(self, folder: Path, workers: int, commands: int, seed: int) -> None:
        """Make the inputs, and what one process writes.

        Args:
          workers, commands: number of kills of each.
        """
        self._folder, self._random = folder, Random(seed)
        kinds: list[Kill] = ["worker", "command"]
        self.left = self._random.sample(kinds, workers + commands, counts=[workers, commands])
        self.done = Counter[str]()
        policy = train_small_policy(folder / "policy")
        sample(folder / "rollout", policy, num_questions=150, num_generations=8)
        sample(folder / "trajectories", policy, num_questions=24, num_generations=4)
        cut(folder / "cutpoints", folder / "trajectories", interval=2)
        value(folder / "estimate", folder / "cutpoints", rollouts="4")
        task = ("--task", *ARITHMETIC["task"].split(), "--task-arg", *ARITHMETIC["task_arg"])
        self.words: dict[str, Sequence[str | Path]] = {
            "rollout": (
                *("rollout", "-m", policy, *task, "--max-tokens", "24", "--num-questions", "150"),
                *("--num-generations", "8", "--chunk-questions", "2"),
            ),
            "estimate": ("estimate", folder / "cutpoints", "--rollouts", "4", "--chunk-trajectories", "4"),
        }

    def finish(self, stage: str) -> None:
        """Run a stage, with the kills that are due meanwhile, until it ends by itself; compare its files."""
        out = self._folder / f"{stage}-killed"  # beside that of one process: parts hold relative paths of their inputs
        shutil.rmtree(out, ignore_errors=True)
        words = (*self.words[stage], "--threads", "1", "--max-batch-rows", "1", "--out", out)
        while not self._run(stage, out, (*words, "--executor", "ray", "--num-workers", "2")):
            pass
        assert files(out) == files(self._folder / stage), f"{stage} writes other bytes"
        print(f"{stage}: the bytes of one process", flush=True)

    def _run(self, stage: str, out: Path, words: Sequence[str | Path]) -> bool:
        """Run a command until it ends or is killed; return whether it has finished the stage."""
        with Driver(words) as driver:
            sent: signal.Signals | None = None
            while not sent and self.left and (process := self._await_moment(driver)):
                sent = self._kill(driver, process, stage)
            code = driver.wait(LIMIT)
            expected = SIGNALS[sent] if sent else 0
            if sent and code == -sent and list(out.glob("part-*.parquet")):
                expected = code  # Python takes the handlers away while it ends, after the work
            if code == 1 and THRICE in driver.lines[-1]:
                self.done["ends after three losses"] += 1
                return False
            assert code in (0, expected), f"exit code {code} instead of {expected}: {driver.lines[-20:]}"
            assert "Traceback" not in str(driver.lines), driver.lines
            return code == 0

    def _await_moment(self, driver: Driver) -> int | None:
        """Wait until the next kill is due; return the number of its process, or None if it has ended."""
        process, span = driver.number, COMMAND_SECONDS
        if self.left[-1] == "worker":
            until(lambda: driver.code is not None or len(driver.workers()) == 2, LIMIT)
            if not (workers := driver.workers()):
                return None
            process, span = self._random.choice(workers), WORKER_SECONDS
        due = seconds(process) + self._random.random() * span
        until(lambda: driver.code is not None or seconds(process) >= due, LIMIT)
        return process if psutil.pid_exists(process) and driver.code is None else None

    def _kill(self, driver: Driver, process: int, stage: str) -> signal.Signals | None:
        """Kill what is due; return the signal that the command got, None if it goes on."""
        kind, when = self.left.pop(), seconds(process)
        number = self._random.choice(list(SIGNALS)) if kind == "command" else signal.SIGKILL
        if kind == "command":
            driver.signal(number)
        else:
            os.kill(process, number)
        self.done[f"{kind} {number.name}"] += 1
        print(f"{stage}: {number.name} to a {kind} after {when:.1f} CPU s; {len(self.left)} to do", flush=True)
        return number if kind == "command" else None


def seconds(process: int) -> float:
    """Return the processor time of a process; without end if it has ended."""
    with suppress(psutil.Error):
        times = psutil.Process(process).cpu_times()
        return times.user + times.system
    return float("inf")


def main() -> None:
    """Kill as many workers and commands as the command line says."""
    workers, commands, seed = (*map(int, sys.argv[1:4]), *(30, 10, 0)[len(sys.argv) - 1 :])
    fix_environment()
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        kills = Kills(Path(name), workers, commands, seed)
        for stage in cycle(kills.words):
            if not kills.left:
                break
            kills.finish(stage)
    print(dict(kills.done))


if __name__ == "__main__":
    main()
