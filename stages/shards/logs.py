"""The log of a part (`part-….log`) or of a training call (`train.log`, `sft.log`), in `_logs/NAME/` beside the output.

Each line is text with a time.

Times, hosts and speeds are written here and not to the part, whose bytes must not differ between two runs.
"""

from __future__ import annotations

import datetime
import os
import sys
from contextlib import suppress

from stages.core.errors import StoreUnreachable
from stages.core.paths import AnyPath
from stages.core.storage import write_atomically
from stages.core.store import StorePath


class PartLog:
    """The log of one part or of one model. Every call appends to it; each line starts with the time in UTC."""

    def __init__(self, path: AnyPath) -> None:
        self.path = path
        self._started = False
        self._text: str | None = None  # the whole log: an object in a store cannot be appended to

    def start(self, fingerprint: str) -> None:
        """Write the first line of a run: the command, the host, the SLURM job and the fingerprint of the work."""
        self._started = True
        job = {name: os.environ[name] for name in ("SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID") if name in os.environ}
        where = [f"host {os.uname().nodename}", f"process {os.getpid()}", *(f"{k} {v}" for k, v in job.items())]
        self.write(f"started: {' '.join(sys.argv)} ({', '.join(where)}), fingerprint {fingerprint}")

    def end(self, line: str) -> None:
        """Write the last line of a run that did not finish."""
        if self._started:
            with suppress(OSError, StoreUnreachable):  # a full disk must not hide the error that ended the run
                self.write(line)

    def write(self, line: str) -> None:
        """Append one line."""
        time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        if isinstance(self.path, StorePath):
            self._rewrite(f"{time} {line}\n")
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{time} {line}\n")

    def _rewrite(self, line: str) -> None:
        if self._text is None:
            self._text = self.path.read_text() if self.path.exists() else ""
        self._text += line
        write_atomically(self.path, self._text.encode())
