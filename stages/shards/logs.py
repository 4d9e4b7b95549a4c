"""Owns the log of a part: plain lines with their time, for what may differ between two runs of the same work."""

from __future__ import annotations

import datetime
import os
import sys
from contextlib import suppress
from pathlib import Path

from stages.core import paths
from stages.core.errors import StoreUnreachable


class PartLog:
    """The log of a part, appended to by every run; each line with its time (UTC)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._started = False
        self._text: str | None = None  # all of it, where nothing can be appended to an object

    def start(self, fingerprint: str) -> None:
        """The first line of a run: which command works on what, and where."""
        self._started = True
        job = {name: os.environ[name] for name in ("SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID") if name in os.environ}
        where = [f"host {os.uname().nodename}", f"process {os.getpid()}", *(f"{k} {v}" for k, v in job.items())]
        self.write(f"started: {' '.join(sys.argv)} ({', '.join(where)}), fingerprint {fingerprint}")

    def end(self, line: str) -> None:
        """The last line of a run that did not finish; disk or store may take no more, and the error matters."""
        if self._started:
            with suppress(OSError, StoreUnreachable):
                self.write(line)

    def write(self, line: str) -> None:
        """Appends one line."""
        time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        if not paths.is_local(self.path):
            self._rewrite(f"{time} {line}\n")
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{time} {line}\n")

    def _rewrite(self, line: str) -> None:
        if self._text is None:
            self._text = self.path.read_text() if self.path.exists() else ""
        self._text += line
        self.path.write_text(self._text)
