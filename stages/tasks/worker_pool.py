"""The processes behind `stages.tasks.sandbox`, which alone starts them: `python -m stages.tasks.worker_pool SETTINGS`.

The pool process reads one line of calls (JSON) from its input, distributes them among its workers, writes one line of
results, and repeats until its input ends. Each worker makes one call at a time. A worker that exceeds a limit ends:
the kernel kills it for processor time, the pool for elapsed time, and a failed allocation ends it for memory. Its call
then has no result, and the pool forks a new worker for the next call. Only elapsed time depends on what else the
machine does, so a call that exceeded it is made once more, after all others and alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, BinaryIO, NamedTuple, NoReturn

_MAX_CALLS_PER_WORKER = 2_000
"""A worker is replaced after this many calls, because the caches of sympy and of the parser grow."""


class Settings(NamedTuple):
    """The arguments of `stages.tasks.sandbox.SandboxedFunction`."""

    function: str
    processor_seconds: float
    clock_seconds: float
    memory: int
    workers: int


class WorkerProcess:
    """A forked process that makes calls, seen from the pool.

    Attributes:
      pipe: the pool's end of the connection.
      call: index of the current call; None while idle.
      deadline: monotonic time at which the pool kills the worker if the call has not ended.
    """

    def __init__(self, function: Callable[..., Any], settings: Settings, inherited: list[int]) -> None:
        """Fork.

        Args:
          function: the function to call.
          settings: its limits.
          inherited: file descriptors of the pool that the worker closes. If it kept a pipe of another worker open, the
            pool would not see the end of that worker.
        """
        self.pipe, worker_end = Pipe()
        self.call: int | None = None
        self.deadline = 0.0
        self._seconds = settings.clock_seconds
        self._calls = 0
        self._pid = os.fork()
        if self._pid == 0:
            for descriptor in (*inherited, self.pipe.fileno()):
                os.close(descriptor)
            _run_worker(worker_end, function, settings)
        worker_end.close()

    @property
    def is_exhausted(self) -> bool:
        """Whether it has made the maximum number of calls."""
        return self._calls >= _MAX_CALLS_PER_WORKER

    def start_call(self, call: int, arguments: list[Any]) -> None:
        """Start a call and its clock."""
        self.call, self._calls = call, self._calls + 1
        self.deadline = time.monotonic() + self._seconds
        with contextlib.suppress(OSError):  # it died while idle; the pool then sees the end of its pipe
            self.pipe.send(arguments)

    def kill(self) -> None:
        """Kill the process, whatever its state, and reap it."""
        self.pipe.close()
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


class WorkerPool:
    """Serves lines of calls with worker processes, which it forks on demand."""

    def __init__(self, function: Callable[..., Any], settings: Settings, requests: BinaryIO, replies: BinaryIO) -> None:
        self._function = function
        self._settings = settings
        self._requests = requests
        self._replies = replies
        self._workers: list[WorkerProcess] = []

    def serve(self) -> None:
        """Answer requests until the input ends."""
        try:
            while line := self._requests.readline():
                self._replies.write(json.dumps(self._make_calls(json.loads(line))).encode() + b"\n")
                self._replies.flush()
        except (BrokenPipeError, EOFError):
            pass  # the parent process has ended: there is no reader of a reply
        finally:
            for worker in self._workers:
                worker.kill()

    def _make_calls(self, calls: list[list[Any]]) -> list[Any]:
        """Return the result of each call; None for a call that exceeded a limit or ended its worker.

        Raises:
          EOFError: the input ended meanwhile.
        """
        results: list[Any] = [None] * len(calls)
        for call in self._make_in_parallel(calls, list(range(len(calls))), results):
            self._make_in_parallel(calls, [call], results)
        return results

    def _make_in_parallel(self, calls: list[list[Any]], chosen: list[int], results: list[Any]) -> list[int]:
        """Store the results of the calls with the given indices; return those that exceeded the elapsed time.

        Raises:
          EOFError: the input ended meanwhile.
        """
        late: list[int] = []
        started = 0
        while True:
            while started < len(chosen) and (worker := self._idle_worker()):
                worker.start_call(chosen[started], calls[chosen[started]])
                started += 1
            busy = [worker for worker in self._workers if worker.call is not None]
            if not busy:
                return late
            seconds_left = min(worker.deadline for worker in busy) - time.monotonic()
            ready = wait([self._requests.fileno(), *(worker.pipe for worker in busy)], max(seconds_left, 0))
            if self._requests.fileno() in ready:  # the parent writes no request before the reply: the input has ended
                raise EOFError
            for worker in busy:
                if worker.pipe in ready:
                    self._receive(worker, results)
                elif time.monotonic() > worker.deadline and not worker.pipe.poll():
                    assert worker.call is not None
                    late.append(worker.call)
                    self._remove(worker)

    def _idle_worker(self) -> WorkerProcess | None:
        """Return an idle worker, a new one if there is room for it, or None."""
        for worker in self._workers:
            if worker.call is None:
                return worker
        if len(self._workers) == self._settings.workers:
            return None
        pipes = [worker.pipe.fileno() for worker in self._workers]
        inherited = [self._requests.fileno(), self._replies.fileno(), *pipes]
        self._workers.append(WorkerProcess(self._function, self._settings, inherited))
        return self._workers[-1]

    def _receive(self, worker: WorkerProcess, results: list[Any]) -> None:
        """Store the result of a worker's call, or remove the worker if it died."""
        assert worker.call is not None
        try:
            results[worker.call] = worker.pipe.recv()
        except (EOFError, OSError):
            self._remove(worker)
            return
        worker.call = None
        if worker.is_exhausted:
            self._remove(worker)

    def _remove(self, worker: WorkerProcess) -> None:
        self._workers.remove(worker)
        worker.kill()


def _run_worker(pipe: Connection, function: Callable[..., Any], settings: Settings) -> NoReturn:
    """Make calls until the pipe ends.

    Always leaves by `os._exit`, so that the exit handlers and buffers copied from the pool do not run or flush twice.
    """
    try:
        resource.setrlimit(resource.RLIMIT_AS, (settings.memory, settings.memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        while True:
            arguments = pipe.recv()
            # SIGPROF has its default action here: it ends the process, even inside a loop in C that never returns.
            signal.setitimer(signal.ITIMER_PROF, settings.processor_seconds)
            result = function(*arguments)
            signal.setitimer(signal.ITIMER_PROF, 0)
            pipe.send(result)
    except BaseException:  # end of input, MemoryError, or anything that untrusted input causes
        os._exit(1)
    os._exit(0)


def main() -> None:
    """Serve until the input ends, with the settings of the command line (a JSON object)."""
    settings = Settings(**json.loads(sys.argv[1]))
    # A terminal or scheduler signals the whole process group. The parent decides what a signal means and may still need
    # results; the end of the input ends this process.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Replies keep the original output; what libraries print goes to the null device.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    module, _, name = settings.function.partition(":")
    loaded = import_module(module)
    getattr(loaded, "warm_up", lambda: None)()
    WorkerPool(getattr(loaded, name), settings, sys.stdin.buffer, replies).serve()


if __name__ == "__main__":
    main()
