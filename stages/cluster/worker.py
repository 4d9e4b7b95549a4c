"""A worker: one process that Ray starts, which makes one call at a time and reports its progress meanwhile."""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import ray
from ray.exceptions import RayError

from stages.core.errors import SpoError, first_line

_REPORT_SECONDS = 0.5
"""Seconds between two messages with reports of a call."""


class WorkerLost(Exception):
    """The process of a worker ended, or failed with an error that a new process may not repeat."""


@dataclass(frozen=True)
class Resources:
    """What a worker asks of Ray.

    Attributes:
      gpus: number of GPUs of its own; it sees no other.
      memory: bytes that Ray reserves for it; None reserves none.
      strategy: where Ray places it; None leaves this to Ray.
    """

    cpus: int = 1
    gpus: int = 0
    memory: int | None = None
    strategy: Any = None


class _Message(NamedTuple):
    """What a worker sends: reports of a call, then its result or its error."""

    kind: Literal["reports", "done", "failed"]
    content: Any


@dataclass
class Workspace:
    """What stays in the process of a worker from one call to the next, by name."""

    kept: dict[str, Any] = field(default_factory=dict)


class Process:
    """The code that runs in the process of a worker."""

    def __init__(self, log: str | None, environment: dict[str, str]) -> None:
        os.environ.update(environment)
        if log:
            _redirect_output(Path(log))
        self._workspace = Workspace()

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Iterator[_Message]:
        """Call `function(workspace, report, *arguments)` in a thread; yield its reports, then its result or error."""
        messages: queue.SimpleQueue[_Message] = queue.SimpleQueue()

        def work() -> None:
            try:
                report: Callable[[Any], None] = lambda one: messages.put(_Message("reports", one))  # noqa: E731
                messages.put(_Message("done", function(self._workspace, report, *arguments)))
            except BaseException as error:  # the caller waits for an answer, whatever ends the thread
                messages.put(_Message("failed", error if isinstance(error, SpoError | WorkerLost) else _lost(error)))

        threading.Thread(target=work, daemon=True).start()
        reports, due = [], time.monotonic() + _REPORT_SECONDS
        while True:
            try:
                message = messages.get(timeout=max(due - time.monotonic(), 0.001))
            except queue.Empty:
                if reports:
                    yield _Message("reports", reports)
                reports, due = [], time.monotonic() + _REPORT_SECONDS
                continue
            if message.kind == "reports":
                reports.append(message.content)
                continue
            if reports:
                yield _Message("reports", reports)
            yield message
            return


class Worker:
    """A worker, seen from the driver."""

    def __init__(self, name: str, resources: Resources, log: Path | None, environment: dict[str, str]) -> None:
        self.name, self.log = name, log
        remote = ray.remote(max_restarts=0, max_task_retries=0)(Process)
        optional = {"memory": resources.memory, "scheduling_strategy": resources.strategy}
        actor = remote.options(
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            **{name: value for name, value in optional.items() if value is not None},
        ).remote(str(log) if log else None, environment)
        self._actor = cast("Any", actor)  # Ray's types lack generators

    def call(
        self, function: Callable[..., Any], *arguments: Any, on_report: Callable[[Any], None] | None = None
    ) -> Any:
        """Return `function(workspace, report, *arguments)`, computed in the worker.

        Args:
          function: a function of a module, with arguments that can be pickled.
          on_report: receives what the function passes to `report`.

        Raises:
          SpoError: the function raised it.
          WorkerLost: the process ended, or the function raised another error.
        """
        try:
            for reference in self._actor.call.options(num_returns="streaming").remote(function, arguments):
                message = cast("_Message", ray.get(reference))
                if message.kind == "done":
                    return message.content
                if message.kind == "failed":
                    raise message.content
                for report in message.content:
                    if on_report:
                        on_report(report)
        except RayError as error:
            raise WorkerLost(_describe(error)) from error
        raise WorkerLost("its process ended in the middle of a call")

    def kill(self) -> None:
        """End the process at once."""
        ray.kill(self._actor)


def _lost(error: BaseException) -> WorkerLost:
    traceback.print_exception(error)  # into the log of the worker
    return WorkerLost(f"{type(error).__name__}: {first_line(error)}")


def _describe(error: Exception) -> str:
    """Return in one line why Ray lost a worker."""
    name = type(error).__name__
    if name in ("ActorDiedError", "RayActorError", "WorkerCrashedError"):
        return "its process ended (killed, or out of memory)"
    return f"{first_line(error)} ({name})"


def _redirect_output(log: Path) -> None:
    """Append the output of this process to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    for number in (1, 2):
        os.dup2(handle, number)
    os.close(handle)
