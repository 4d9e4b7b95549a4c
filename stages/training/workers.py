"""Carry progress and metrics of a training call from rank 0 in a worker to the command that waits for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from stages.core.paths import AnyPath, as_path
from stages.core.progress import Progress
from stages.tracking.metrics_log import Metrics, MetricsLog, Series

Send = Callable[[tuple[str, tuple[Any, ...], dict[str, Any]]], None]
"""Sends the name of a method, its arguments and its keywords."""


class SentProgress:
    """A `Progress` that sends its reports."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def start(self, label: str, total: int, unit: str, most_tokens: int | None = None) -> None:
        self._send(("start", (label, total, unit, most_tokens), {}))

    def advance(self, done: int = 0, tokens: int = 0, prefilled: int = 0, **figures: float) -> None:
        self._send(("advance", (done, tokens, prefilled), figures))

    def note(self, line: str) -> None:
        self._send(("note", (line,), {}))


class SentMetrics:
    """The part of a `MetricsLog` that training uses; it sends every entry."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def open_series(self, stage: str, output: AnyPath, work: str, valid: Sequence[Metrics]) -> SentMetrics:
        """See `MetricsLog.open_series`."""
        self._send(("open_series", (stage, str(output), work, list(valid)), {}))
        return self

    def log(self, metrics: Metrics) -> None:
        """See `Series.log`."""
        self._send(("log", (dict(metrics),), {}))


class Receiver:
    """Passes on what `SentProgress` and `SentMetrics` send."""

    def __init__(self, progress: Progress, metrics_log: MetricsLog | None) -> None:
        self._progress, self._metrics_log = progress, metrics_log
        self._series: Series | None = None

    def __call__(self, sent: tuple[str, tuple[Any, ...], dict[str, Any]]) -> None:
        method, arguments, keywords = sent
        if method == "open_series" and self._metrics_log:
            stage, output, work, valid = arguments
            self._series = self._metrics_log.open_series(stage, as_path(output), work, valid)
        elif method == "log" and self._series:
            self._series.log(*arguments)
        elif method in ("start", "advance", "note"):
            getattr(self._progress, method)(*arguments, **keywords)
