"""`spo status`: report the progress of a run, stage by stage: parts done, running, queued, failed, missing.

It reads the directory of the run, and queries SLURM for the jobs that `spo slurm` submitted. For a run of `spo run`, or
one whose stages were run by hand, it reports the artefacts that exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stages.configs.status import Config
from stages.core.errors import UserError
from stages.core.progress import Progress, Silent
from stages.core.store import StorePath
from stages.slurm import queue, states
from stages.slurm.records import read_plan, read_submitted
from stages.slurm.states import StageProgress


@dataclass(frozen=True)
class Status:
    """The progress of a run.

    Attributes:
      run: directory of the run.
      stages: progress of each stage, in order.
      problem: why SLURM could not be queried about submitted jobs; None if it could, or if there are none.
    """

    run: Path
    stages: tuple[StageProgress, ...]
    problem: str | None


def run(config: Config, progress: Progress = Silent()) -> Status:
    """Return the progress of a run.

    Raises:
      UserError: the path does not exist, or is not a run.
    """
    if isinstance(config.run, StorePath):
        raise UserError(
            f"{config.run} is in an object store; expected a local run. `spo show` describes one in a store"
        )
    if not config.run.is_dir():
        raise UserError(f"{config.run} is not a directory; expected the directory of a run, such as runs/gsm8k")
    planned, submitted = read_plan(config.run), read_submitted(config.run)
    names = {work.name for work in planned}
    works = [*planned, *(work for work in states.works_on_disk(config.run) if work.name not in names)]
    if not works:
        raise UserError(
            f"{config.run} holds no artefact of a run and no jobs; expected directories such as start/ and 000/"
        )
    jobs = queue.query_jobs(list(dict.fromkeys(job.number for job in submitted)))
    found = tuple(states.stage_progress(config.run, work, submitted, jobs) for work in works)
    return Status(config.run, found, jobs.problem)
