"""Small real tables and lineages that the tests of artefacts write and read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from stages.core.config import option
from stages.core.store import StorePath
from stages.shards.lineage import Lineage, Source, describe
from stages.shards.schemas import CUTPOINTS, TRAJECTORIES, Schema
from stages.shards.writing import open_part

TINY = Source("models/tiny", "m0", "model")

PathT = TypeVar("PathT", Path, StorePath)


@dataclass(frozen=True, kw_only=True)
class Settings:
    temperature: float = option("Temperature.", default=1.0)
    seed: int = option("Seed.", default=0)
    batch: int = option("Rows at once.", default=8, result=False)


class Notes:
    """A Progress that records its notes."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def start(self, label: str, total: int, unit: str, most_tokens: int | None = None) -> None: ...

    def advance(self, done: int = 0, tokens: int = 0, prefilled: int = 0, **figures: float) -> None: ...

    def note(self, line: str) -> None:
        self.lines.append(line)


def trajectories(count: int, first: int = 0) -> pa.Table:
    """Return `count` rows from row `first` of an endless table; each row depends on its number."""
    rows = [
        {
            "trajectory_id": f"q{n // 4}/{n % 4}",
            "parent_id": None,
            "question_id": f"q{n // 4}",
            "depth": 0,
            "prompt": f"{n // 4} + 1 =",
            "prompt_token_ids": [1, n // 4],
            "token_ids": list(range(n % 5 + 1)),
            "logprobs": [-0.125 * k for k in range(n % 5 + 1)],
            "text": f"answer {n}",
            "finish_reason": "length" if n % 7 == 0 else "stop",
            "answer": None if n % 3 == 0 else str(n),
            "reference": str(n),
            "reward": float(n % 2),
        }
        for n in range(first, first + count)
    ]
    return pa.Table.from_pylist(rows, schema=TRAJECTORIES.arrow)


def cutpoints(count: int, first: int = 0) -> pa.Table:
    """Return one segment for each of the `trajectories`."""
    rows = [
        {"trajectory_id": f"q{n // 4}/{n % 4}", "segment_index": 0, "start": 0, "end": n % 5 + 1, "cutpoints": [0]}
        for n in range(first, first + count)
    ]
    return pa.Table.from_pylist(rows, schema=CUTPOINTS.arrow)


def lineage(
    settings: Settings | None = None,
    schema: Schema = TRAJECTORIES,
    inputs: tuple[Source, ...] = (),
    model: Source | None = TINY,
) -> Lineage:
    return describe(schema.stage, schema, settings or Settings(), inputs, model)


def write_part(
    directory: PathT,
    index: int = 0,
    count: int = 1,
    *,
    table: pa.Table | None = None,
    work: Lineage | None = None,
    schema: Schema = TRAJECTORIES,
    chunk: int = 5,
    overwrite: bool = False,
    progress: Notes | None = None,
) -> PathT:
    """Write a complete part in chunks of `chunk` rows, unless it is up to date."""
    rows = trajectories(12, 12 * index) if table is None else table
    with open_part(
        directory, index, count, work or lineage(), schema, overwrite=overwrite, progress=progress or Notes()
    ) as part:
        if not part.up_to_date:
            starts = range(0, rows.num_rows, chunk)
            for i in part.missing([f"rows {start}-{start + chunk}" for start in starts]):
                rows_of_chunk = rows.slice(starts[i], chunk)
                part.commit(i, rows_of_chunk, {"rows": rows_of_chunk.num_rows})
            part.finish({"rows": rows.num_rows})
    return directory / part.path.name


def files(directory: Path) -> dict[str, bytes]:
    """Return the content of every file under a directory, except the logs, by its relative path."""
    found = sorted(path for path in directory.rglob("*") if path.is_file() and "_logs" not in path.parts)
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}
