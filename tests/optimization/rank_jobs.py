"""Calls of `spo train` one after another on the ranks of a launcher: `torchrun … -m tests.optimization.rank_jobs FOLDER`.

`FOLDER/jobs.json` lists them: a name, the options, and what is to happen on the way. Of each rank and call,
`FOLDER/NAME.RANK.json` says how it ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from stages.core.errors import SpoError, UserError
from stages.core.progress import Silent

TUPLES = ("advantages", "trajectories")
PATHS = ("out", "deepspeed_config")


class Told(Silent):
    """Notes are kept; after so many steps everything ends as by `kill -9`."""

    def __init__(self, steps: int | None) -> None:
        self.notes: list[str] = []
        self._left = steps

    def note(self, line: str) -> None:
        self.notes.append(line)

    def advance(self, done: int = 0, tokens: int = 0, **figures: float) -> None:
        if self._left is not None and "loss" in figures:
            self._left -= 1
            if self._left < 0:
                os.kill(os.getpid(), signal.SIGKILL)


def carry_out(job: dict[str, Any], rank: int) -> dict[str, Any]:
    from stages.shards.disk import locked
    from stages.train import Config, run
    from stages.training import pool
    from stages.training.resumable import partial_directory

    given: dict[str, Any] = dict(job["options"])
    given |= {name: tuple(map(Path, given[name])) for name in TUPLES if name in given}
    given |= {name: Path(given[name]) for name in PATHS if name in given}
    told = Told(job.get("kill_after"))
    fill_pool = pool.fill_pool

    def fail(*args: Any, **options: Any) -> Any:
        raise UserError("this disk is not there")

    held = locked(partial_directory(given["out"])) if job.get("held") and rank == 0 else nullcontext()
    try:
        pool.fill_pool = fail if job.get("fails_on") == rank else fill_pool
        with held:
            summary = run(Config(**given), told)
        return {"rows": summary.rows, "up_to_date": summary.up_to_date, "notes": told.notes}
    except SpoError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        pool.fill_pool = fill_pool


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    for job in json.loads((folder / "jobs.json").read_text()):
        ended = carry_out(job, rank)
        (folder / f"{job['name']}.{rank}.json").write_text(json.dumps(ended))


if __name__ == "__main__":
    main()
