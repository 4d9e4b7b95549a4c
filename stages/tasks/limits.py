"""Owns calling a function that may hang, die or eat memory: in processes of their own, a limit on every single call.

    judge = Limited("stages.tasks.maths_algebra:judge")
    results = judge([("x+1", "1+x", True), …])     # None where a call broke its limits

This process starts one other, the nursery (`stages.tasks.nursery`), which imports the function's module once and forks
workers from itself; that costs milliseconds, and nothing of this process (its threads, its GPU) is copied. The nursery
ends when this process does, however that ends, and its workers with it.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.core.errors import SpoError

_ROOT = Path(__file__).resolve().parents[2]
_MOST_WORKERS = 16


class Limited:
    """A function with limits on every call. Safe to share between threads; a forked child starts its own nursery.

    Attributes:
      function: `package.module:name`; takes and returns what JSON can hold. The module may have a `warm_up()`, which
        runs once before workers are forked.
      processor_seconds: what a call may compute; the kernel ends it then, wherever it is.
      clock_seconds: how long it may take from its own start, waiting included.
      memory: bytes of address space that a worker may have.
      workers: how many calls run at once; None: as many as this process has processors, 16 at most.
    """

    def __init__(
        self,
        function: str,
        *,
        processor_seconds: float = 3.0,
        clock_seconds: float = 10.0,
        memory: int = 2**31,
        workers: int | None = None,
    ) -> None:
        self._settings = {
            "function": function,
            "processor_seconds": processor_seconds,
            "clock_seconds": clock_seconds,
            "memory": memory,
            "workers": workers or min(_processors(), _MOST_WORKERS),
        }
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()

    def __call__(self, calls: Sequence[Sequence[Any]]) -> list[Any]:
        """The result of each call, in order; None for one that broke a limit or killed its process.

        Raises:
          SpoError: the nursery did not start, or was killed from outside.
        """
        if not calls:
            return []
        if self._owner != os.getpid():  # forked: the pipes belong to the parent, its lock may be held for ever
            self._lock, self._process, self._owner = threading.Lock(), None, os.getpid()
        with self._lock:
            try:
                return self._exchange(json.dumps(list(calls)).encode())
            except BaseException:  # interrupted between question and reply, the pipes are of no use any more
                self._end()
                raise

    def close(self) -> None:
        """End the nursery and its workers; another call starts them anew."""
        if self._owner == os.getpid():
            with self._lock:
                self._end()

    def _exchange(self, calls: bytes) -> list[Any]:
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(calls + b"\n")
            process.stdin.flush()
            reply = process.stdout.readline()
        except BrokenPipeError:
            reply = b""
        if not reply.endswith(b"\n"):
            raise SpoError(f"the process that grades answers ended with code {process.wait()}; run again to resume")
        return json.loads(reply)

    def _start(self) -> subprocess.Popen[bytes]:
        paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-m", "stages.tasks.nursery", json.dumps(self._settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        atexit.register(self.close)
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process:
            atexit.unregister(self.close)
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()  # tells the nursery to end
            process.wait()


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
