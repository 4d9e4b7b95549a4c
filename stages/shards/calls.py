"""Read the log of a part or a model: the calls that worked on it, their seconds, GPUs, chunks and warnings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from stages.core.paths import AnyPath

WARNING = "warning: "
"""Begins the line of a warning in a log."""

_LINE = re.compile(r"(\d{4}-\d\d-\d\dT[0-9:.+-]+) (.*)")
_FINISHED = re.compile(r"finished: .* in ([0-9.]+) s")
_CHUNK = re.compile(r"chunk (\d+) of (\d+): (\d+) rows(.*)")
_FIGURE = re.compile(r", ([a-z_]+) ([0-9.e+-]+)")
_STEPS = re.compile(r"to do: (\d+) of (\d+) steps(.*)")


@dataclass(frozen=True)
class LoggedChunk:
    """A committed chunk.

    Attributes:
      number, count: the number of the chunk, from 1, and the number of chunks of the part.
      figures: rows, and what the stage counted, such as sampled and prefilled.
      time: when it was committed, in seconds since 1970.
    """

    number: int
    count: int
    figures: dict[str, float]
    time: float


@dataclass
class Call:
    """One call that worked on a part or a model.

    Attributes:
      began, ended: times of its first and last line, in seconds since 1970; a line has a resolution of one second.
      ending: how it ended; "" if it was killed or still works.
      steps: number of optimizer steps of the whole work; None for a part.
      gpus: number of GPUs that it used; None if the log does not say.
      warnings, notes: in order; a note is a line that reports no routine step.
    """

    began: float
    ended: float
    ending: Literal["", "finished", "failed", "interrupted"] = ""
    steps: int | None = None
    gpus: int | None = None
    chunks: list[LoggedChunk] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    measured: float | None = None

    @property
    def seconds(self) -> float:
        """How long it worked: as it measured itself, else from its first line to its last."""
        return self.ended - self.began if self.measured is None else self.measured

    @property
    def interval(self) -> tuple[float, float]:
        """When it began and ended, in seconds since 1970."""
        return self.ended - self.seconds, self.ended

    def total(self, figure: str) -> float:
        """Return the sum of a figure over the chunks that it committed."""
        return sum(chunk.figures.get(figure, 0.0) for chunk in self.chunks)


def read_calls(text: str) -> list[Call]:
    """Return the calls of a log, in order; lines that are not of a log, such as torn ones, are skipped."""
    calls: list[Call] = []
    for time, line in _lines(text):
        if line.startswith("started: "):
            calls.append(Call(time, time))
        elif calls:
            _add(calls[-1], time, line)
    return calls


def read_log(path: AnyPath) -> list[Call]:
    """Return the calls of a log file, in order; none if there is no such file."""
    return read_calls(path.read_text()) if path.is_file() else []


def wall_seconds(calls: Iterable[Call]) -> float:
    """Return how long at least one of the calls worked: the length of the union of their intervals."""
    total, reached = 0.0, float("-inf")
    for began, ended in sorted(call.interval for call in calls):
        total += max(0.0, ended - max(began, reached))
        reached = max(reached, ended)
    return total


def gpu_seconds(logs: Sequence[Sequence[Call]]) -> float | None:
    """Return the sum of seconds times GPUs over the calls of each log; None if it is not known.

    A call that ended before it recorded its GPUs counts with those of the other calls of its log.
    """
    total = 0.0
    for calls in logs:
        known = [call.gpus for call in calls if call.gpus is not None]
        if calls and not known:
            return None
        total += sum(call.seconds * (known[-1] if call.gpus is None else call.gpus) for call in calls)
    return total


def _lines(text: str) -> Iterator[tuple[float, str]]:
    for line in text.splitlines():
        if match := _LINE.fullmatch(line):
            try:
                yield datetime.fromisoformat(match[1]).timestamp(), match[2]
            except ValueError:
                continue


def _add(call: Call, time: float, line: str) -> None:
    """Add what a line says to its call."""
    call.ended = time
    if match := _FINISHED.fullmatch(line):
        call.ending, call.measured = "finished", float(match[1])
    elif line.startswith("failed: "):
        call.ending = "failed"
    elif line.startswith("interrupted: "):
        call.ending = "interrupted"
    elif line.startswith(WARNING):
        call.warnings.append(line.removeprefix(WARNING))
    elif match := _CHUNK.fullmatch(line):
        figures = {"rows": float(match[3])} | {name: float(value) for name, value in _FIGURE.findall(match[4])}
        call.chunks.append(LoggedChunk(int(match[1]), int(match[2]), figures, time))
        _add_gpus(call, figures)
    elif match := _STEPS.fullmatch(line):
        call.steps = int(match[2])
        _add_gpus(call, {name: float(value) for name, value in _FIGURE.findall(match[3])})
    elif ": resuming" not in line:
        call.notes.append(line)


def _add_gpus(call: Call, figures: dict[str, float]) -> None:
    if "gpus" in figures:
        call.gpus = max(call.gpus or 0, int(figures["gpus"]))
