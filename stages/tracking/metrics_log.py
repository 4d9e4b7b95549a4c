"""Owns a run's metrics: all of them in one JSONL file, in order, and the mirrors that show it (`--report-to`).

    RUN/_logs/metrics.jsonl       of `spo run`, whose stages share it
    DIR/_logs/NAME/metrics.jsonl  of a stage by itself that writes DIR/NAME, where mirrors are asked for
    beside it                     tensorboard/, wandb/, mirrors.json (the run's id)

A run in a store has all this in the cache of this machine, and a copy of the two files in its own `_logs/`.

A stage opens the series of its output with the lines that stand (those up to its checkpoint, where it was killed), and
the file then says exactly these: what is beyond is dropped, what is missing added. A mirror is told an entry before the
file is, so a complete file means complete mirrors.
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

from stages.core.launcher import read_launch
from stages.core.paths import cache_directory, is_local, relative_path
from stages.core.progress import Progress
from stages.core.storage import digest
from stages.shards.disk import disk_errors, locked, replacing
from stages.shards.lineage import canonical_json
from stages.tracking.trackers import TRACKERS, Entry, RunInfo, Tracker, check_trackers

LOGS = "_logs"
"""A directory that no reader of artefacts looks into."""

Line = Mapping[str, float]
"""Figures by name; `step` among them, from 1, where they are of an optimiser step."""


class MetricsLog:
    """The metrics of a run, held by this process alone.

    Attributes:
      steps: optimiser steps of the run before the stage at hand.
    """

    def __init__(
        self,
        logs: Path,
        root: Path,
        mirrors: Sequence[str],
        title: str,
        settings: Mapping[str, Any],
        progress: Progress,
    ) -> None:
        """
        Args:
          logs: where the file and the mirrors lie, or a copy of the file.
          root: outputs are named as seen from here.
          mirrors: names of `TRACKERS`.
          title, settings: for mirrors that show them: a name for people, and the run's options.
        """
        self.steps = 0
        self._logs, self._root, self._asked = logs, root, tuple(dict.fromkeys(mirrors))
        self._title, self._settings, self._progress = title, settings, progress
        local = is_local(logs)
        self._directory = logs if local else cache_directory() / "logs" / digest(str(logs.resolve()).encode())
        self._path, self._state = self._directory / "metrics.jsonl", self._directory / "mirrors.json"
        self._opened: list[Tracker] | None = None
        self._told: dict[str, list[int]] = {}
        self._works: dict[str, str] = {}
        self._count = 0
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        check_trackers(self._asked)
        with disk_errors(self._directory):
            self._resources.enter_context(locked(self._directory))
            self._fetch()
            self._index()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        try:
            if kind is None and self._count and not set(self._asked) <= set(self._read_state().get("shown", ())):
                self._mirrors()
            for mirror in self._opened or ():
                mirror.close(failed=kind is not None)
            self._store(self._path)
        finally:
            self._resources.__exit__(kind, *error)

    def open_series(self, stage: str, output: Path, work: str, lines: Sequence[Line]) -> Series:
        """Makes the run tell of an output exactly these lines; what it gets next is logged to the series.

        Args:
          work: fingerprint of what is done; another one than before begins a new run in the mirrors.
        """
        name = relative_path(output, self._root)
        told = self._told.get(name, [])
        if told and self._works[name] != work:
            self._write_state({})
            self._cut(told[0])
        elif len(told) > len(lines):
            self._cut(told[len(lines)])
        series = Series(self, stage, name, work)
        for line in lines[len(self._told.get(name, [])) :]:
            series.log(line)
        return series

    def log_figures(self, stage: str, output: Path, told: Line) -> None:
        """The figures of a stage that is done, as its artefact tells them: once, however often it is asked."""
        self.open_series(stage, output, digest(canonical_json(told).encode()), [told])

    def add(self, entry: Entry) -> None:
        """One entry, to the mirrors and to the file."""
        for mirror in self._mirrors():
            mirror.show(self._count, entry)
        with disk_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        self._note(entry)

    def _note(self, entry: Entry) -> None:
        self._told.setdefault(entry["of"], []).append(self._count)
        self._works[entry["of"]] = entry["work"]
        self._count += 1

    def _index(self) -> None:
        """Reads what the file says; a line that a crash has torn goes."""
        self._told, self._works, self._count = {}, {}, 0
        if not self._path.exists():
            return
        content = self._path.read_bytes()
        if not content.endswith(b"\n"):
            self._replace(content[: content.rfind(b"\n") + 1])
        for entry in self._entries():
            self._note(entry)

    def _entries(self) -> Iterator[Entry]:
        if self._path.exists():
            with self._path.open(encoding="utf-8") as file:
                yield from map(json.loads, file)

    def _cut(self, count: int) -> None:
        """Drops all entries but the first `count`, and lets the mirrors be opened again."""
        for mirror in self._opened or ():
            mirror.close(failed=False)
        self._opened = None
        with self._path.open("rb") as file:
            self._replace(b"".join(line for _, line in zip(range(count), file, strict=False)))
        self._index()

    def _replace(self, content: bytes) -> None:
        with disk_errors(self._path), replacing(self._path, self._path.with_name(".metrics.jsonl")) as file:
            file.write(content)

    def _mirrors(self) -> list[Tracker]:
        """Those asked for, opened when there is something new to show."""
        if self._opened is None:
            state = self._read_state()
            identity = state.get("identity") or uuid.uuid4().hex[:8]
            self._write_state({"identity": identity})
            shown = RunInfo(self._directory, identity, self._title, self._settings)
            self._opened = []
            for name in self._asked:
                self._opened.append(TRACKERS[name](shown, self._entries()))
                self._progress.note(self._opened[-1].where)
            self._write_state({"identity": identity, "shown": self._asked})
        return self._opened

    def _fetch(self) -> None:
        """From the store what this machine has not seen: a run that began on another goes on."""
        for path in (self._path, self._state) if not is_local(self._logs) else ():
            if not path.exists() and (self._logs / path.name).exists():
                path.write_bytes((self._logs / path.name).read_bytes())

    def _store(self, path: Path) -> None:
        if not is_local(self._logs) and path.exists():
            (self._logs / path.name).write_bytes(path.read_bytes())

    def _read_state(self) -> dict[str, Any]:
        """The run's identity, and which mirrors show all that the file says."""
        return json.loads(self._state.read_text()) if self._state.exists() else {}

    def _write_state(self, state: Mapping[str, Any]) -> None:
        with disk_errors(self._state), replacing(self._state, self._state.with_name(".mirrors.json")) as file:
            file.write(json.dumps(state).encode())
        self._store(self._state)


class Series:
    """What a run tells of one output, line by line."""

    def __init__(self, report: MetricsLog, stage: str, output: str, work: str) -> None:
        self._report, self._stage, self._output, self._work = report, stage, output, work
        self._before = report.steps

    def log(self, line: Line) -> None:
        """The next line; figures that are not finite are left out."""
        head = {"stage": self._stage, "of": self._output, "work": self._work}
        place = {"step": self._before + int(line.get("step", 0)), "time": round(time.time(), 3)}
        told = {f"{self._stage}/{name}": value for name, value in line.items() if name != "step"}
        self._report.add(head | place | {name: value for name, value in told.items() if math.isfinite(value)})


@contextmanager
def open_run_log(
    out: Path, mirrors: Sequence[str], settings: Mapping[str, Any], progress: Progress
) -> Iterator[MetricsLog | None]:
    """The report of a whole run; None in every process of a group but the first.

    Raises:
      UserError: as `check_trackers`; another process writes to it.
    """
    if read_launch().rank:
        yield None
        return
    with MetricsLog(out / LOGS, out, mirrors, out.resolve().name, settings, progress) as report:
        yield report


@contextmanager
def open_stage_log(
    out: Path, mirrors: Sequence[str], settings: Mapping[str, Any], progress: Progress, shared: MetricsLog | None = None
) -> Iterator[MetricsLog | None]:
    """The report that a stage writes to: that of the run which it is part of, else its own where mirrors are asked for.

    None elsewhere, and in every process of a group but the first. Raises as `open_run_log`.
    """
    if shared or not mirrors or read_launch().rank:
        yield shared
        return
    here = out.resolve()
    title = f"{here.parent.name}/{here.name}"
    with MetricsLog(out.parent / LOGS / out.name, out.parent, mirrors, title, settings, progress) as report:
        yield report
