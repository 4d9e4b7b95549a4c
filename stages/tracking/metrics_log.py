"""The metrics of a run: one JSONL file with all entries in order, and the trackers that show them (`--report-to`).

    RUN/_logs/metrics.jsonl       written by `spo run`; all its stages share the file
    DIR/_logs/NAME/metrics.jsonl  written by a single stage with the output DIR/NAME, if `--report-to` is given
    in the same directory         tensorboard/, wandb/, mirrors.json (the id of the run at the trackers)

For a run in an object store, these files are in the cache of this machine, and the two JSON files are copied to the
`_logs/` of the run.

A stage opens the series of its output with the metrics that are already valid: all steps up to its checkpoint, if the
stage was killed. The file then contains exactly these entries of the output: later ones are removed, missing ones are
added. A tracker receives an entry before the file does, so that a complete file implies complete trackers.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from stages.core.json_files import decoded, parse_json, read_json
from stages.core.launcher import read_launch
from stages.core.paths import LOGS, AnyPath, cache_directory, log_directory, relative_path
from stages.core.progress import Progress
from stages.core.storage import digest, write_atomically
from stages.core.store import StorePath
from stages.shards.disk import disk_errors, locked
from stages.shards.lineage import canonical_json
from stages.tracking.trackers import TRACKERS, Entry, RunInfo, Tracker, check_trackers

Metrics = Mapping[str, float]
"""Metric name → value. Metrics of an optimizer step also have `step`, counted from 1."""


class MetricsLog:
    """The metrics of a run. A lock keeps other processes from writing to it.

    Attributes:
      steps: the number of optimizer steps that the run made before the current stage. It is added to the step of each
        entry, so that all iterations share one axis.
    """

    def __init__(
        self,
        logs: AnyPath,
        root: AnyPath,
        trackers: Sequence[str],
        title: str,
        settings: Mapping[str, Any],
        progress: Progress,
    ) -> None:
        """
        Args:
          logs: the directory of the file and of the trackers' files; if it is in a store, of copies of the JSON files.
          root: outputs are recorded as paths relative to this directory.
          trackers: names of trackers (keys of `TRACKERS`).
          title, settings: a name for the run and its options, which some trackers show.
          progress: receives a note with the location of each tracker.
        """
        self.steps = 0
        self._logs, self._root, self._tracker_names = logs, root, tuple(dict.fromkeys(trackers))
        self._title, self._settings, self._progress = title, settings, progress
        local = isinstance(logs, Path)
        self._directory = logs if local else cache_directory() / "logs" / digest(str(logs.resolve()).encode())
        self._path, self._state = self._directory / "metrics.jsonl", self._directory / "mirrors.json"
        self._opened: list[Tracker] | None = None
        self._entry_numbers: dict[str, list[int]] = {}  # output → numbers of its entries in the file
        self._works: dict[str, str] = {}  # output → fingerprint of the work in its last entry
        self._count = 0  # entries in the file
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        check_trackers(self._tracker_names)
        with disk_errors(self._directory):
            self._resources.enter_context(locked(self._directory))
            self._fetch()
            self._index()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        try:
            # A tracker that was added to a finished run still has to show its entries.
            if (
                kind is None
                and self._count
                and not set(self._tracker_names) <= set(self._read_state().get("shown", ()))
            ):
                self._open_trackers()
            for tracker in self._opened or ():
                tracker.close(failed=kind is not None)
            self._store(self._path)
        finally:
            self._resources.__exit__(kind, *error)

    def open_series(self, stage: str, output: AnyPath, work: str, valid: Sequence[Metrics]) -> Series:
        """Make `valid` the only entries of an output, and return the series that further entries are logged to.

        Args:
          stage: the command that makes the output.
          output: the path of the output.
          work: the fingerprint of the work. If it differs from that of the existing entries, the trackers start a new
            run.
          valid: the metrics of the output so far, e.g. of all steps up to the last checkpoint.
        """
        name = relative_path(output, self._root)
        existing = self._entry_numbers.get(name, [])
        if existing and self._works[name] != work:
            self._write_state({})  # without an identity, the trackers start a new run
            self._truncate(existing[0])
        elif len(existing) > len(valid):
            self._truncate(existing[len(valid)])
        series = Series(self, stage, name, work)
        for metrics in valid[len(self._entry_numbers.get(name, [])) :]:
            series.log(metrics)
        return series

    def log_figures(self, stage: str, output: AnyPath, figures: Metrics) -> None:
        """Record the figures of a finished stage. Repeating the call with the same figures changes nothing."""
        self.open_series(stage, output, digest(canonical_json(figures).encode()), [figures])

    def append(self, entry: Entry) -> None:
        """Add an entry, first to the trackers and then to the file."""
        for tracker in self._open_trackers():
            tracker.log(self._count, entry)
        with disk_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        self._register(entry)

    def _register(self, entry: Entry) -> None:
        self._entry_numbers.setdefault(entry["of"], []).append(self._count)
        self._works[entry["of"]] = entry["work"]
        self._count += 1

    def _index(self) -> None:
        """Read the file; remove an incomplete last line, which a crash left."""
        self._entry_numbers, self._works, self._count = {}, {}, 0
        if not self._path.exists():
            return
        content = self._path.read_bytes()
        if not content.endswith(b"\n"):
            self._replace(content[: content.rfind(b"\n") + 1])
        for entry in self._entries():
            decoded(lambda entry=entry: self._register(entry), str(self._path))

    def _entries(self) -> Iterator[Entry]:
        if self._path.exists():
            with self._path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    yield parse_json(line, f"{self._path} line {number}")

    def _truncate(self, count: int) -> None:
        """Keep the first `count` entries, and close the trackers: the next entry opens them again without the rest."""
        for tracker in self._opened or ():
            tracker.close(failed=False)
        self._opened = None
        with self._path.open("rb") as file:
            self._replace(b"".join(line for _, line in zip(range(count), file, strict=False)))
        self._index()

    def _replace(self, content: bytes) -> None:
        with disk_errors(self._path):
            write_atomically(self._path, content)

    def _open_trackers(self) -> list[Tracker]:
        """Return the trackers; open them at the first call, so that a run without new entries starts none."""
        if self._opened is None:
            state = self._read_state()
            identity = state.get("identity") or uuid.uuid4().hex[:8]
            self._write_state({"identity": identity})
            run = RunInfo(self._directory, identity, self._title, self._settings)
            self._opened = []
            for name in self._tracker_names:
                self._opened.append(TRACKERS[name](run, self._entries()))
                self._progress.note(self._opened[-1].location)
            self._write_state({"identity": identity, "shown": self._tracker_names})
        return self._opened

    def _fetch(self) -> None:
        """Copy the files that this machine lacks from the store, to continue a run that began on another machine."""
        for path in (self._path, self._state) if isinstance(self._logs, StorePath) else ():
            if not path.exists() and (self._logs / path.name).exists():
                write_atomically(path, (self._logs / path.name).read_bytes())

    def _store(self, path: AnyPath) -> None:
        if isinstance(self._logs, StorePath) and path.exists():
            write_atomically(self._logs / path.name, path.read_bytes())

    def _read_state(self) -> dict[str, Any]:
        """Return the id of the run at the trackers (`identity`) and the trackers that have all entries (`shown`)."""
        return read_json(self._state) if self._state.exists() else {}

    def _write_state(self, state: Mapping[str, Any]) -> None:
        with disk_errors(self._state):
            write_atomically(self._state, json.dumps(state).encode())
        self._store(self._state)


class Series:
    """The entries of one output in a `MetricsLog`."""

    def __init__(self, metrics_log: MetricsLog, stage: str, output: str, work: str) -> None:
        self._metrics_log, self._stage, self._output, self._work = metrics_log, stage, output, work
        self._steps_before = metrics_log.steps

    def log(self, metrics: Metrics) -> None:
        """Add the next entry; values that are not finite are left out, because JSON has no notation for them."""
        head = {"stage": self._stage, "of": self._output, "work": self._work}
        position = {"step": self._steps_before + int(metrics.get("step", 0)), "time": round(time.time(), 3)}
        named = {f"{self._stage}/{name}": value for name, value in metrics.items() if name != "step"}
        self._metrics_log.append(
            head | position | {name: value for name, value in named.items() if math.isfinite(value)}
        )


@contextmanager
def open_run_log(
    out: AnyPath, trackers: Sequence[str], settings: Mapping[str, Any], progress: Progress
) -> Iterator[MetricsLog | None]:
    """Open the metrics of a whole run; yield None in every rank except the first.

    Raises:
      UserError: as for `check_trackers`, or another process writes to these metrics.
    """
    if read_launch().rank:
        yield None
        return
    with MetricsLog(out / LOGS, out, trackers, out.resolve().name, settings, progress) as metrics_log:
        yield metrics_log


@contextmanager
def open_stage_log(
    out: AnyPath,
    trackers: Sequence[str],
    settings: Mapping[str, Any],
    progress: Progress,
    shared: MetricsLog | None = None,
) -> Iterator[MetricsLog | None]:
    """Open the metrics that a stage writes to: those of its run (`shared`), or its own if `trackers` names any.

    Otherwise, and in every rank except the first, yield None. Raises the same errors as `open_run_log`.
    """
    if shared or not trackers or read_launch().rank:
        yield shared
        return
    here = out.resolve()
    title = f"{here.parent.name}/{here.name}"
    with MetricsLog(log_directory(out), out.parent, trackers, title, settings, progress) as metrics_log:
        yield metrics_log
