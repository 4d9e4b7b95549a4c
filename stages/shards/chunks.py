"""Owns the unfinished work on one part: the chunks in its dot-directory, each a file that says what it covers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from stages.core.errors import IncompleteInput, StoreUnreachable, UserError
from stages.core.paths import is_local, remove_tree
from stages.shards.disk import replacing, write_parquet
from stages.shards.files import lineage_of, read_columns, read_footer
from stages.shards.lineage import FOOTER_KEY, Lineage, canonical_json
from stages.shards.schemas import Schema

_CHUNK_KEY = b"spo.chunk"


@dataclass(frozen=True)
class Chunk:
    """What a committed chunk says of itself: the rows it covers (`key`), how many there are, and its counts."""

    key: str
    rows: int
    counts: dict[str, int]


@dataclass(frozen=True)
class Chunks:
    """The chunks in `directory`, numbered from 0; missing ones are not there."""

    directory: Path
    schema: Schema

    def path(self, number: int) -> Path:
        """Where a chunk is, or will be."""
        return self.directory / f"chunk-{number:05d}.parquet"

    def files(self) -> Iterator[tuple[int, Path, Chunk | None, Lineage | None]]:
        """Number, file, and what it says of itself (None, None: torn), in order.

        Raises:
          Unreachable: a chunk that cannot be read now; it is work that was done, and stays.
        """
        for file in sorted(self.directory.glob("chunk-*.parquet")):
            chunk = lineage = None
            try:
                footer = read_footer(file, self.schema)
                chunk, lineage = Chunk(**json.loads(footer.metadata[_CHUNK_KEY])), lineage_of(footer, file)
            except StoreUnreachable:
                raise
            except (IncompleteInput, UserError):
                pass
            except FileNotFoundError:  # another process has published the part and removed its chunks
                continue
            yield int(file.stem.removeprefix("chunk-")), file, chunk, lineage

    def write(self, number: int, table: pa.Table, chunk: Chunk, lineage: Lineage) -> None:
        """Commits a chunk: complete and on disk, or not there."""
        footer = {FOOTER_KEY: lineage.to_json().encode(), _CHUNK_KEY: canonical_json(asdict(chunk)).encode()}
        target = self.path(number)
        with replacing(target, self.directory / f".{target.name}.tmp") as file:
            write_parquet(file, [table], self.schema.arrow.with_metadata(footer), self.schema.row_group)

    def any(self) -> bool:
        """Whether there is one; another process may be removing them just now."""
        with suppress(FileNotFoundError):
            return any(entry.name.startswith("chunk-") for entry in self.directory.iterdir())
        return False

    def clear(self) -> None:
        """Removes all of them."""
        if not is_local(self.directory):
            remove_tree(self.directory)
            return
        for file in self.directory.glob("chunk-*"):
            file.unlink()

    def read(self, numbers: Mapping[int, Chunk], columns: list[str] | None = None) -> Iterator[pa.Table]:
        """These columns of the given chunks, in order.

        Raises:
          IncompleteInput: a chunk that was damaged after it was committed.
        """
        names = self.schema.names if columns is None else columns
        fields = pa.schema([column.field for column in self.schema.select(names)])
        for number in sorted(numbers):
            yield read_columns(self.path(number), list(names), self.schema).cast(fields)
