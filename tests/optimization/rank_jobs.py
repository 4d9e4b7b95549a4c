"""Run several `spo train` calls on the ranks of a launcher: `torchrun … -m tests.optimization.rank_jobs FOLDER`.

`FOLDER/jobs.json` lists the calls: a name, the options, and the failure to provoke. Each rank writes the outcome of a
call to `FOLDER/NAME.RANK.json`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from stages import train
from stages.core.errors import SpoError, UserError
from stages.core.progress import Silent
from stages.shards.disk import locked
from stages.training.resumable import partial_directory

TUPLES = ("advantages", "trajectories")
PATHS = ("out", "deepspeed_config")


class RecordedProgress(Silent):
    """Record all notes; if `steps` is given, kill the process with SIGKILL in the step after that many."""

    def __init__(self, steps: int | None) -> None:
        self.notes: list[str] = []
        self._steps_left = steps

    def note(self, line: str) -> None:
        self.notes.append(line)

    def advance(self, done: int = 0, tokens: int = 0, prefilled: int = 0, **figures: float) -> None:
        if self._steps_left is not None and "loss" in figures:
            self._steps_left -= 1
            if self._steps_left < 0:
                os.kill(os.getpid(), signal.SIGKILL)


def run_job(job: dict[str, Any], rank: int) -> dict[str, Any]:
    """Run one call on this rank, with the failure that the job provokes; return its outcome or its error."""
    given: dict[str, Any] = dict(job["options"])
    given |= {name: tuple(map(Path, given[name])) for name in TUPLES if name in given}
    given |= {name: Path(given[name]) for name in PATHS if name in given}
    progress = RecordedProgress(job.get("kill_after"))
    fill_pool = train.fill_pool

    def fail(*args: Any, **options: Any) -> Any:
        raise UserError("this disk is not there")

    lock = locked(partial_directory(given["out"])) if job.get("locked") and rank == 0 else nullcontext()
    try:
        train.fill_pool = fail if job.get("fails_on") == rank else fill_pool
        with lock:
            summary = train.run(train.Config(**given), progress)
        return {"rows": summary.rows, "up_to_date": summary.up_to_date, "notes": progress.notes}
    except SpoError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        train.fill_pool = fill_pool


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    for job in json.loads((folder / "jobs.json").read_text()):
        outcome = run_job(job, rank)
        (folder / f"{job['name']}.{rank}.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main()
