"""Commands with a Ray of their own, and every process that they start, wherever it hangs in the tree of processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil


def until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until a condition holds, at most `seconds`."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it takes too long"
        time.sleep(0.02)


class Driver:
    """A command that runs in a process group and a temporary folder of its own; ended with the `with` block.

    The folder, or one inside it, is a variable of the environment of all its processes, which finds them after their
    parents have ended.
    """

    def __init__(self, words: Sequence[str | Path]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="d"))  # short: Ray's sockets below it have at most 107 characters
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in __exit__)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "spo_cli", *map(str, words)],
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            env={**os.environ, "TMPDIR": str(self._folder)},
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._errors.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def number(self) -> int:
        """Number of its process."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Exit code; None while it runs."""
        return self._process.poll()

    @property
    def lines(self) -> list[str]:
        """What it has written on standard error."""
        return os.pread(self._errors.fileno(), 2**24, 0).decode().splitlines()

    def processes(self) -> dict[int, str]:
        """Return the number and the command line of every process of it that runs."""
        found = dict[int, str]()
        for one in psutil.process_iter():
            with suppress(psutil.Error):  # it may end, or belong to another user
                places = [value for value in one.environ().values() if f"{value}/".startswith(f"{self._folder}/")]
                if places and one.status() != psutil.STATUS_ZOMBIE:
                    found[one.pid] = " ".join(one.cmdline())
        return found

    def workers(self) -> list[int]:
        """Return the numbers of the processes of its workers."""
        return [number for number, line in self.processes().items() if line.startswith("ray::Process")]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the command alone; SIGINT to its process group, as a terminal does."""
        with suppress(ProcessLookupError):  # it may have ended
            if number == signal.SIGINT:
                os.killpg(self._process.pid, number)
            else:
                self._process.send_signal(number)

    def wait(self, seconds: float) -> int:
        """Wait for its end, and for that of all its processes; return its exit code."""
        code = self._process.wait(seconds)
        until(lambda: not self.processes(), seconds)
        assert not list(self._folder.iterdir()), "its temporary files remain"
        return code
