"""The records of a run's jobs in `_slurm/`: the planned work (plan.json) and the submitted jobs (jobs.tsv)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core.errors import UserError
from stages.core.json_files import decoded, read_json
from stages.core.storage import write_atomically
from stages.shards.disk import disk_errors
from stages.slurm.jobs import Work

FOLDER, LOGS, PLAN, SUBMITTED = "_slurm", "logs", "plan.json", "jobs.tsv"
"""Directory in a run; in it, the directory of the jobs' logs, the plan, and a table with a line per submitted job."""


@dataclass(frozen=True)
class SubmittedJob:
    """A job that was submitted to SLURM.

    Attributes:
      name: the name of its work, e.g. `000-rollout`.
      number: its number in SLURM.
      tasks: the tasks of its array that were submitted; None: all of them.
    """

    name: str
    number: str
    tasks: frozenset[int] | None

    def has(self, task: int) -> bool:
        """Return whether the submission included a task."""
        return self.tasks is None or task in self.tasks


def write_files(run: Path, files: Mapping[str, str]) -> None:
    """Write files (name → text) into the directory of a run's jobs.

    Raises:
      UserError: the directory is not writable, or the disk is full.
    """
    folder = run / FOLDER
    with disk_errors(folder):
        (folder / LOGS).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_atomically(folder / name, text.encode())


def plan_text(works: Sequence[Work]) -> str:
    """Return the text of plan.json, which `read_plan` reads: one line per stage and iteration."""
    lines = ",\n".join(json.dumps(dataclasses.asdict(work)) for work in works)
    return f"[\n{lines}\n]\n"


def read_plan(run: Path) -> tuple[Work, ...]:
    """Return the planned work of a run; empty if no job was planned.

    Raises:
      UserError: the plan cannot be read.
    """
    path = run / FOLDER / PLAN
    if not path.is_file():
        return ()
    try:
        works = read_json(path, list[Any])
        return decoded(lambda: tuple(Work(**work) for work in works), str(path))
    except UserError as error:
        raise UserError(f"{error}: write it again with `spo slurm RECIPE`") from error


def read_submitted(run: Path) -> tuple[SubmittedJob, ...]:
    """Return all jobs of a run that were ever submitted, in order.

    Raises:
      UserError: the table of jobs cannot be read.
    """
    path = run / FOLDER / SUBMITTED
    if not path.is_file():
        return ()
    try:
        return tuple(_submitted(*line.split("\t")) for line in path.read_text().splitlines())
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot read {path} ({error}): expected name, number and tasks on each line") from error


def _submitted(name: str, number: str, tasks: str) -> SubmittedJob:
    array = tasks.partition("%")[0]  # `%4` limits how many tasks run at once
    return SubmittedJob(name, number, frozenset(_numbers(array)) if array else None)


def _numbers(array: str) -> list[int]:
    """Return the task numbers of an array: `2,5-6` → 2, 5, 6."""
    runs = [run.partition("-") for run in array.split(",")]
    return [number for first, _, last in runs for number in range(int(first), int(last or first) + 1)]
