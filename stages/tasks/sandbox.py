"""Calls of a function that may hang, crash or exhaust memory: in other processes, with limits on every call.

    compare = SandboxedFunction("stages.tasks.maths_algebra:compare_by_algebra")
    results = compare([("x+1", "1+x", True), …])     # None for a call that exceeded a limit

This process starts one other process, the pool (`stages.tasks.worker_pool`), which imports the module of the function
once and forks its workers. A fork of the pool takes milliseconds and copies nothing of this process, such as its
threads or GPU memory. The pool and its workers end when this process ends, in whatever way.
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

_REPOSITORY = Path(__file__).resolve().parents[2]
_MAX_WORKERS = 16


class SandboxedFunction:
    """A function with limits on every call. Threads may share it; a forked child starts its own pool."""

    def __init__(
        self,
        function: str,
        *,
        processor_seconds: float = 5.0,
        clock_seconds: float = 120.0,
        memory: int = 2**31,
        workers: int | None = None,
    ) -> None:
        """Set the limits; the first call starts the processes.

        Args:
          function: `package.module:name`. Arguments and results must be JSON values. If the module has a function
            `warm_up()`, it runs once before the workers are forked.
          processor_seconds: processor time of a call.
          clock_seconds: elapsed time of a call from its own start, including time without a processor. It is a guard
            against a call that waits; a busy machine must not exceed it. A call that does is made once more, alone.
          memory: bytes of address space of a worker.
          workers: number of simultaneous calls; None: the number of processors of this process, at most 16.
        """
        self._settings = {
            "function": function,
            "processor_seconds": processor_seconds,
            "clock_seconds": clock_seconds,
            "memory": memory,
            "workers": workers or min(_processor_count(), _MAX_WORKERS),
        }
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._creator_pid = os.getpid()

    def __call__(self, calls: Sequence[Sequence[Any]]) -> list[Any]:
        """Return the result of each call, in order; None for a call that exceeded a limit or killed its process.

        Raises:
          SpoError: the pool did not start, or was killed from outside.
        """
        if not calls:
            return []
        if self._creator_pid != os.getpid():
            # Forked: the pipes belong to the parent, and a thread of the parent may have held the lock.
            self._lock, self._process, self._creator_pid = threading.Lock(), None, os.getpid()
        with self._lock:
            try:
                return self._exchange(json.dumps(list(calls)).encode())
            except BaseException:  # an interrupt between request and reply: the next reply would be the wrong one
                self._end()
                raise

    def close(self) -> None:
        """End the pool and its workers; another call starts a new pool."""
        if self._creator_pid == os.getpid():
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
            raise SpoError(f"the grading process ended with code {process.wait()}; rerun the command to resume")
        return json.loads(reply)

    def _start(self) -> subprocess.Popen[bytes]:
        # -P keeps the current directory off the module path: a user's `stages` or `math.py` there must not be imported.
        paths = [str(_REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-m", "stages.tasks.worker_pool", json.dumps(self._settings)],
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
                process.stdin.close()  # the pool ends at the end of its input
            process.wait()


def _processor_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
