"""`spo report`: write the contents of runs and artefacts as one HTML file, and optionally as JSON."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from stages.configs.report import Config
from stages.core.errors import UserError
from stages.core.paths import AnyPath
from stages.core.progress import Progress, Silent, Summary
from stages.core.storage import write_atomically
from stages.reporting import curves, page, selection
from stages.reporting.columns import pack
from stages.reporting.responses import Collector
from stages.reporting.sources import Found, find
from stages.shards.disk import disk_errors
from stages.shards.lineage import canonical_json

FORMAT = 1
"""Version of the data set in a report: increased when the meaning of one of its values changes."""
MARK = '<meta name="generator" content="spo report">'
"""Every report has this line; a file without it is never replaced."""


def run(config: Config, progress: Progress = Silent()) -> Summary:
    """Write the report of all paths.

    Raises:
      UserError: a path holds nothing to show, or the output exists and is not a report or `overwrite` is not set.
      IncompleteInput: a single artefact is incomplete.
    """
    started = time.monotonic()
    paths = config.paths
    out = _check_output(config.out or _default_out(paths[0]), config.overwrite)
    found = find(paths)
    progress.start("report", len(found.responses), "tables")
    values, arrays = collect(found, config.max_trajectories, config.max_megabytes * 1e6, progress)
    text = page.render(f"spo report: {values['title']}", pack(values, arrays))
    _write(out, text)
    if config.json:
        _write(out.with_suffix(".json"), twin(values, arrays))
    return Summary(
        stage="report",
        out=str(out),
        rows=values["shown"],
        seconds=time.monotonic() - started,
        figures={
            "runs": len(found.runs),
            "iterations": len({(one["run"], one["iteration"]) for one in values["iterations"]}),
            "megabytes": round(len(text) / 1e6, 2),
        },
        notes=tuple(values["notes"]),
    )


def collect(
    found: Found, max_trajectories: int, max_bytes: float, progress: Progress = Silent()
) -> tuple[dict[str, Any], dict[str, NDArray]]:
    """Return the JSON values and the arrays of a report."""
    questions, shown, total = selection.choose(found.responses, max_trajectories, max_bytes)
    collector = Collector(questions)
    for one in found.responses:
        collector.add(one)
        progress.advance(1)
    values, arrays = collector.result()
    rule = "" if shown == total else _rule(len(questions), shown, total)
    head = {
        "format": FORMAT,
        "title": ", ".join(name for name, _ in found.runs),
        "runs": [{"name": name, "path": path} for name, path in found.runs],
        "iterations": curves.iterations(found),
        "audits": [dataclasses.asdict(one) for one in found.audits],
        "shown": shown,
        "total": total,
        "rule": rule,
        "notes": [*dict.fromkeys([*found.notes, *collector.notes]), *([rule] if rule else [])],
    }
    return head | values, arrays


def twin(values: dict[str, Any], arrays: dict[str, NDArray]) -> str:
    """Return the content of a report as JSON: `columns` has the arrays as lists, NaN as null."""
    columns = {name: array.tolist() for name, array in arrays.items()}
    return json.dumps(json.loads(canonical_json({**values, "columns": columns})), ensure_ascii=False)


def _rule(questions: int, shown: int, total: int) -> str:
    return (
        f"{shown:,} of {total:,} responses are shown: all those to {questions:,} questions, chosen by a hash of their "
        "id; the curves of the overview use all responses (--max-trajectories, --max-megabytes)"
    )


def _default_out(path: AnyPath) -> AnyPath:
    """Return report.html in a run or beside a file; in an artefact, a name that its readers ignore."""
    if not isinstance(path, Path):
        return Path("report.html")
    directory = path.parent if path.suffix == ".parquet" else path
    is_artefact = any(directory.glob("[!._]*.parquet"))
    return directory / ("_report.html" if is_artefact else "report.html")


def _check_output(out: AnyPath, overwrite: bool) -> Path:
    """Return the local file to write.

    Raises:
      UserError: it is in a store, is not a report, or is one and `overwrite` is not set.
    """
    if not isinstance(out, Path):
        raise UserError(f"a report is written to a local file; got --out {out}")
    if not out.exists():
        return out
    with out.open(encoding="utf-8", errors="replace") as file:
        if MARK not in file.read(2000):
            raise UserError(f"{out} was not written by `spo report`: choose another --out")
    if not overwrite:
        raise UserError(f"{out} exists. Choose another --out, or pass --overwrite to replace it")
    return out


def _write(out: Path, text: str) -> None:
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, text.encode("utf-8", "surrogatepass"))
