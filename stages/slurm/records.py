"""Owns what `_slurm/` says of a run's jobs: what they are to make (plan.json), and which were submitted (jobs.tsv)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.core.errors import UserError
from stages.slurm.jobs import Work

FOLDER, LOGS, PLAN, SUBMITTED = "_slurm", "logs", "plan.json", "jobs.tsv"
"""The folder within a run; in it, the folder of the jobs' logs, the plan, and a line for every job submitted."""


@dataclass(frozen=True)
class SubmittedJob:
    """A job that SLURM took.

    Attributes:
      name: of the work, as `000-rollout`.
      number: that SLURM gave it.
      tasks: those of its array that were submitted; None: all.
    """

    name: str
    number: str
    tasks: frozenset[int] | None

    def has(self, task: int) -> bool:
        """Whether it includes a task."""
        return self.tasks is None or task in self.tasks


def write_files(run: Path, files: Mapping[str, str]) -> None:
    """Texts by name, into the folder of a run's jobs.

    Raises:
      UserError: it cannot be written.
    """
    from stages.shards.disk import disk_errors

    folder = run / FOLDER
    with disk_errors(folder):
        (folder / LOGS).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)


def plan_text(works: Sequence[Work]) -> str:
    """What `read_plan` reads: a line for each."""
    lines = ",\n".join(json.dumps(dataclasses.asdict(work)) for work in works)
    return f"[\n{lines}\n]\n"


def read_plan(run: Path) -> tuple[Work, ...]:
    """What the jobs of a run have to make; nothing where no job was planned.

    Raises:
      UserError: a plan that cannot be read.
    """
    path = run / FOLDER / PLAN
    if not path.is_file():
        return ()
    try:
        return tuple(Work(**work) for work in json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): write it anew with `spo slurm RECIPE`") from error


def read_submitted(run: Path) -> tuple[SubmittedJob, ...]:
    """The jobs of a run that were ever submitted, in order.

    Raises:
      UserError: a list that cannot be read.
    """
    path = run / FOLDER / SUBMITTED
    if not path.is_file():
        return ()
    try:
        return tuple(_submitted(*line.split("\t")) for line in path.read_text().splitlines())
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); expected name, number and tasks on each line") from error


def _submitted(name: str, number: str, tasks: str) -> SubmittedJob:
    written = tasks.partition("%")[0]
    return SubmittedJob(name, number, frozenset(_numbers(written)) if written else None)


def _numbers(array: str) -> list[int]:
    """`2,5-6` → 2, 5, 6."""
    runs = [piece.partition("-") for piece in array.split(",")]
    return [number for first, _, last in runs for number in range(int(first), int(last or first) + 1)]
