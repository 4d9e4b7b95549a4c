"""Distribute small units of work to workers, restart workers that are lost, and repeat their units."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from stages.cluster.session import Session
from stages.cluster.worker import Resources, Worker, WorkerLost
from stages.core.errors import SpoError

MAX_FAILURES = 3
"""A unit that loses this many workers ends the run."""


@dataclass
class Unit:
    """A call for any worker, or for one.

    Attributes:
      function, arguments: as `Worker.call` takes them.
      label: names the unit in messages.
      on_report: receives the reports of the call.
      undo: called with the reports of a call whose worker was lost, before the call is made again.
      names: names of its data, such as prompts; a worker that has had the first one before is preferred.
      slot: number of the worker that must do it; None: any.
      taken_by: number of the worker that took it last.
      failures: number of workers that it has lost.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    label: str
    on_report: Callable[[Any], None] | None = None
    undo: Callable[[list[Any]], None] | None = None
    names: tuple[Hashable, ...] = ()
    slot: int | None = None
    taken_by: int = -1
    failures: int = 0
    result: Future[Any] = field(default_factory=Future)


@dataclass
class SlotStatistics:
    """What one worker has done.

    Attributes:
      busy: seconds in which it had a unit.
      units: number of units that it finished.
      restarts: number of times that it was lost and started again.
    """

    busy: float = 0.0
    units: int = 0
    restarts: int = 0


class Crew:
    """A number of workers of one kind, and the units that wait for them.

    A thread per worker takes the next unit, waits for its result and takes another one, so no worker waits for the
    longest unit of a call. The threads do not compute.
    """

    def __init__(self, session: Session, name: str, count: int, resources: Sequence[Resources]) -> None:
        """Start the workers.

        Args:
          name: name of a worker in messages and logs; its number follows.
          resources: of each worker.
        """
        session.begin()  # here, because only the main thread may replace signal handlers
        self.session, self.name, self.resources = session, name, resources
        self.statistics = [SlotStatistics() for _ in range(count)]
        self.workers: list[Worker | None] = [None] * count
        self._setup: tuple[int, Callable[..., Any] | None, tuple[Any, ...]] = (0, None, ())
        self._versions = [0] * count  # of the set-up that each worker has
        self._answers: list[Any] = [None] * count
        self._waiting: list[Unit] = []
        self._homes: dict[Hashable, int] = {}
        self._closed = False
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._work, args=(slot,), daemon=True) for slot in range(count)]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        return len(self.workers)

    def set_up(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call a function on every worker, now and after each restart; return its results.

        Raises:
          SpoError: the function raised it, or a worker was lost three times in it.
        """
        with self._changed:
            self._setup = (self._setup[0] + 1, function, arguments)
            self._homes.clear()
        self.everywhere(_nothing, label="setting up")
        return list(self._answers)

    def everywhere(self, function: Callable[..., Any], *arguments: Any, label: str = "call") -> list[Any]:
        """Call a function once on every worker; return its results."""
        return self.run([Unit(function, arguments, label, slot=slot) for slot in range(len(self))])

    def run(self, units: Sequence[Unit]) -> list[Any]:
        """Return the results of units, in their order. Several threads may call it.

        Raises:
          SpoError: a unit raised it, or lost `MAX_FAILURES` workers; the units that have not begun are dropped.
        """
        with self._changed:
            if self._closed:
                raise SpoError(f"the {self.name} workers have ended")
            self._waiting += units
            self._changed.notify_all()
        try:
            return [unit.result.result() for unit in units]
        except BaseException:  # after an interrupt, too: no caller waits for the units that have not begun
            with self._changed:
                own = set(map(id, units))
                self._waiting = [unit for unit in self._waiting if id(unit) not in own]
            raise

    def close(self) -> None:
        """End all workers; units that are not finished fail."""
        with self._changed:
            self._closed = True
            dropped, self._waiting = self._waiting, []
            self._changed.notify_all()
        for unit in dropped:
            _fail(unit, SpoError(f"the {self.name} workers have ended"))
        for worker in filter(None, self.workers):
            self.session.end(worker)
        for thread in self._threads:
            thread.join(timeout=5)

    def _work(self, slot: int) -> None:
        """Do units until the crew closes: the thread of one worker."""
        while (unit := self._take(slot)) is not None:
            began, reports = time.monotonic(), []

            def report(one: Any, unit: Unit = unit, reports: list[Any] = reports) -> None:
                reports.append(one)
                if unit.on_report:
                    unit.on_report(one)

            try:
                worker = self._ready(slot)
                result = worker.call(unit.function, *unit.arguments, on_report=report)
            except WorkerLost as error:
                self._replace(slot)
                if unit.undo and reports:
                    unit.undo(reports)
                self._retry(slot, unit, error)
            except BaseException as error:  # `run` raises it where it waits; this thread serves the next unit
                _fail(unit, error)
            else:
                self.statistics[slot].units += 1
                unit.result.set_result(result)
            self.statistics[slot].busy += time.monotonic() - began

    def _take(self, slot: int) -> Unit | None:
        """Wait for a unit and return it; None once the crew is closed.

        First units for this worker alone, then units that follow its own, then new ones, then those that follow the
        units of a busy worker.
        """
        with self._changed:
            while not self._closed:
                if found := min(self._candidates(slot), default=None):
                    unit = self._waiting.pop(found[1])
                    unit.taken_by = slot
                    self._homes |= dict.fromkeys(unit.names, slot)
                    return unit
                self._changed.wait()
        return None

    def _candidates(self, slot: int) -> Iterator[tuple[int, int]]:
        """Yield (rank, position) of the waiting units that a worker may take; the lowest is the best."""
        for position, unit in enumerate(self._waiting):
            if unit.slot is not None:
                if unit.slot == slot:
                    yield 0, position
            else:
                home = self._homes.get(unit.names[0], -1) if unit.names else -1
                yield (1 if home == slot else 2 if home < 0 else 3), position

    def _ready(self, slot: int) -> Worker:
        """Return the worker of a slot, started and set up."""
        worker = self.workers[slot]
        if worker is None:
            worker = self.session.start(f"{self.name}-{slot}", self.resources[slot])
            self.workers[slot], self._versions[slot] = worker, 0
        version, function, arguments = self._setup
        if function and self._versions[slot] != version:
            self._answers[slot] = worker.call(function, *arguments)
            self._versions[slot] = version
        return worker

    def _replace(self, slot: int) -> None:
        """Forget a lost worker, so that the next unit starts another."""
        worker, self.workers[slot] = self.workers[slot], None
        if worker:
            with suppress(Exception):  # it may be gone
                self.session.end(worker)
        with self._changed:
            self._homes = {name: home for name, home in self._homes.items() if home != slot}

    def _retry(self, slot: int, unit: Unit, error: WorkerLost) -> None:
        """Put a unit back, unless it has failed too often."""
        unit.failures += 1
        self.statistics[slot].restarts += 1
        if self._closed or unit.failures >= MAX_FAILURES:
            log = self.session.logs
            where = f"; its log: {log / f'{self.name}-{slot}.log'}" if log else ""
            times = "three times" if unit.failures == 3 else f"{unit.failures} times"
            _fail(unit, SpoError(f"a worker was lost {times} in {unit.label}, last {self.name}-{slot}: {error}{where}"))
            return
        self.session.progress.note(f"{self.name}-{slot} starts again: {error}")
        with self._changed:
            self._waiting.insert(0, unit)
            self._changed.notify_all()


def _fail(unit: Unit, error: BaseException) -> None:
    with suppress(Exception):  # it may have a result already
        unit.result.set_exception(error)


def _nothing(workspace: Any, report: Any) -> None:
    """Do nothing: the call waits for the set-up."""
