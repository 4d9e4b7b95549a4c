"""`spo status`: how far a run is, stage by stage: parts done, running, queued, failed, missing, and what was said last.

It reads the directory, and asks SLURM about the jobs that `spo slurm` submitted. A run of `spo run`, or one made by
hand, is shown as far as it lies there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stages.configs.status import Config
from stages.core.errors import UserError
from stages.core.paths import is_local
from stages.core.progress import Progress, Silent
from stages.slurm import queue, states
from stages.slurm.records import read_plan, read_submitted
from stages.slurm.states import StageProgress


@dataclass(frozen=True)
class Status:
    """How far a run is.

    Attributes:
      stages: in order.
      problem: why SLURM could not be asked about jobs that were submitted.
    """

    run: Path
    stages: tuple[StageProgress, ...]
    problem: str | None


def run(config: Config, progress: Progress = Silent()) -> Status:
    """Looks at a run.

    Raises:
      UserError: nothing there, or no run.
    """

    if not is_local(config.run):
        raise UserError(
            f"{config.run} is in a store; expected a run on this machine. `spo show` tells of one elsewhere"
        )
    if not config.run.is_dir():
        raise UserError(f"{config.run} is no directory; expected that of a run, such as runs/gsm8k")
    planned, submitted = read_plan(config.run), read_submitted(config.run)
    names = {work.name for work in planned}
    works = [*planned, *(work for work in states.works_on_disk(config.run) if work.name not in names)]
    if not works:
        raise UserError(f"{config.run} holds no artefact of a run (expected start/, 000/ … in it) and no jobs")
    asked = queue.query_jobs(list(dict.fromkeys(job.number for job in submitted)))
    found = tuple(states.stage_progress(config.run, work, submitted, asked) for work in works)
    return Status(config.run, found, asked.problem)
