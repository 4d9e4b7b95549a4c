"""Simulate how calls of a stage are shared out to samplers, event by event; nothing here measures or samples.

The simulation follows `stages.sampling.executors.overlap` (up to `lanes` chunks at a time), the real
`stages.sampling.ray.units.divide_requests`, and `stages.cluster.crew` (a free worker takes the first unit that waits).
An engine holds a limited number of rows; a row whose sample ends takes the next one. A step over B rows takes
a + b·B seconds, so a unit takes a·(its steps) + b·(its tokens) seconds. Grading and writing happen in the one process
of the command, one chunk after the other.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from stages.sampling.protocol import Request
from stages.sampling.ray.units import RequestUnit, divide_requests

Call = Sequence[Request]
"""One call of a sampler; a key is the index of a sample in the array of lengths."""
Chunk = Sequence[Call]
"""Calls one after the other: one for responses and rollouts, a call per level for trees."""


@dataclass(frozen=True)
class Rates:
    """Seconds that each kind of work takes.

    Attributes:
      step: a decoding step, however many rows it has.
      row: each row of a step, besides.
      unit: from the end of a unit to the beginning of the next one on the same worker.
      grade: decoding and grading one sample, in the command.
      commit: writing one chunk, in the command.
      load: loading weights into an engine, before the first unit.
    """

    step: float
    row: float
    unit: float = 0.0
    grade: float = 0.0
    commit: float = 0.0
    load: float = 0.0


@dataclass(frozen=True)
class Layout:
    """How work is shared out.

    Attributes:
      lanes: most chunks at a time.
      least: smallest number of samples in a unit.
      rows: most rows in flight in an engine.
    """

    workers: int
    lanes: int
    least: int
    rows: int


@dataclass(frozen=True)
class Outcome:
    """The result of a simulation, in seconds.

    Attributes:
      seconds: from the beginning to the last chunk on disk.
      busy: summed over workers: time with a unit.
      bounds: name → seconds that no schedule can undercut.
    """

    seconds: float
    busy: float
    bounds: dict[str, float]

    @property
    def limit(self) -> str:
        """The largest bound."""
        return max(self.bounds, key=self.bounds.__getitem__)


@dataclass
class _Lane:
    """A chunk under work: calls that remain, and units of the present call that are not finished."""

    calls: deque[Call]
    samples: int
    units: int = 0


def engine_steps(lengths: Sequence[int], rows: int) -> int:
    """Return the number of steps in which an engine with so many rows draws samples of these lengths, in order."""
    ends = [0] * min(rows, max(len(lengths), 1))
    for length in lengths:
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


def unit_seconds(unit: RequestUnit, lengths: NDArray[np.int64], rows: int, rates: Rates) -> float:
    """Return the time that a worker takes for a unit. Prefixes are left out: each token is computed once."""
    drawn = [int(lengths[key]) for request in unit.requests for key in request.keys]
    return rates.unit + rates.step * engine_steps(drawn, rows) + rates.row * sum(drawn)


def simulate(chunks: Sequence[Chunk], lengths: NDArray[np.int64], layout: Layout, rates: Rates) -> Outcome:
    """Return how long the chunks take.

    Args:
      lengths: int64 [N], tokens of each sample.
    """
    todo, order = iter(chunks), count()
    events: list[tuple[float, int, str, _Lane]] = []  # (time, tie-break, what ends, whose)
    waiting: deque[tuple[RequestUnit, _Lane]] = deque()
    idle, now, busy, command_free, last = layout.workers, rates.load, 0.0, 0.0, 0.0

    def begin_chunk() -> None:
        if (chunk := next(todo, None)) is not None:
            begin_call(_Lane(deque(chunk), sum(len(one.keys) for call in chunk for one in call)))

    def begin_call(lane: _Lane) -> None:
        units = divide_requests(lane.calls.popleft(), layout.workers, layout.least)
        lane.units = len(units)
        waiting.extend((unit, lane) for unit in units)

    for _ in range(min(layout.lanes, layout.workers)):
        begin_chunk()
    while True:
        while idle and waiting:
            unit, lane = waiting.popleft()
            seconds = unit_seconds(unit, lengths, layout.rows, rates)
            idle, busy = idle - 1, busy + seconds
            heapq.heappush(events, (now + seconds, next(order), "unit", lane))
        if not events:
            break
        now, _, what, lane = heapq.heappop(events)
        if what == "chunk":
            last = now
            begin_chunk()
            continue
        idle, lane.units = idle + 1, lane.units - 1
        if lane.units == 0 and lane.calls:
            begin_call(lane)
        elif lane.units == 0:
            command_free = max(now, command_free) + rates.grade * lane.samples + rates.commit
            heapq.heappush(events, (command_free, next(order), "chunk", lane))
    return Outcome(last, busy, _bounds(chunks, lengths, layout, rates))


def _bounds(chunks: Sequence[Chunk], lengths: NDArray[np.int64], layout: Layout, rates: Rates) -> dict[str, float]:
    """Return lower bounds of the time: weights, all tokens on full engines, the longest samples, and the command."""
    tokens = samples = 0
    longest = 0.0
    for chunk in chunks:
        path = 0.0
        for call in chunk:
            keys = [key for request in call for key in request.keys]
            tokens, samples = tokens + int(lengths[keys].sum()), samples + len(keys)
            path += rates.unit + (rates.step + rates.row) * int(lengths[keys].max(initial=0))
        longest = max(longest, path)
    return {
        "samplers": (rates.row + rates.step / layout.rows) * tokens / layout.workers,
        "longest response": longest,
        "command": rates.grade * samples + rates.commit * len(chunks),
        "weights": rates.load,
    }
