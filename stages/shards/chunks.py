"""Committed chunks of a part that is not finished: Parquet files in `.part-00003-of-00008/`.

The footer of a chunk holds the lineage of the part and the rows that the chunk covers. The next run therefore knows
which chunks it can keep.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass

import pyarrow as pa

from stages.core.errors import IncompleteInput, StoreUnreachable, UserError
from stages.core.json_files import decoded, parse_json
from stages.core.paths import AnyPath
from stages.core.storage import replacing
from stages.core.store import StorePath, remove_tree
from stages.shards.disk import write_parquet
from stages.shards.files import lineage_of, read_columns, read_footer
from stages.shards.lineage import FOOTER_KEY, Lineage, canonical_json
from stages.shards.schemas import Schema

_CHUNK_KEY = b"spo.chunk"


@dataclass(frozen=True)
class Chunk:
    """The entry in the footer of a committed chunk.

    Attributes:
      key: which rows of the part it covers, e.g. "questions 0-64".
      rows: how many rows it has.
      counts: whole numbers that the stage counted, such as tokens sampled.
    """

    key: str
    rows: int
    counts: dict[str, int]


@dataclass(frozen=True)
class Chunks:
    """The chunks in `directory`, numbered from 0. Any of them may be missing."""

    directory: AnyPath
    schema: Schema

    def path(self, number: int) -> AnyPath:
        """Return the path of a chunk, whether it exists or not."""
        return self.directory / f"chunk-{number:05d}.parquet"

    def samples_path(self, number: int, file: int) -> AnyPath:
        """Return the path of a file of finished samples of a chunk (`stages.shards.kept_samples`)."""
        return self.directory / f"chunk-{number:05d}.samples-{file:05d}"

    def samples_files(self, number: int) -> list[AnyPath]:
        """Return the files of finished samples of a chunk, in order."""
        return sorted(self.directory.glob(f"chunk-{number:05d}.samples-*"))

    def files(self) -> Iterator[tuple[int, AnyPath, Chunk | None, Lineage | None]]:
        """Yield each chunk's number, file, footer entry and lineage, in order; (None, None) for a corrupt chunk.

        Raises:
          StoreUnreachable: a chunk cannot be read now. It is not treated as corrupt, so that no finished work is lost.
        """
        for file in sorted(self.directory.glob("chunk-*.parquet")):
            chunk = lineage = None
            try:
                footer = read_footer(file, self.schema)
                entry = parse_json(footer.metadata[_CHUNK_KEY], str(file))
                chunk, lineage = decoded(lambda entry=entry: Chunk(**entry), str(file)), lineage_of(footer, file)
            except StoreUnreachable:
                raise
            except (IncompleteInput, UserError):
                pass
            except FileNotFoundError:  # another process published the part and removed its chunks
                continue
            yield int(file.stem.removeprefix("chunk-")), file, chunk, lineage

    def write(self, number: int, table: pa.Table, chunk: Chunk, lineage: Lineage) -> None:
        """Commit a chunk: after a crash it is complete or absent."""
        footer = {FOOTER_KEY: lineage.to_json().encode(), _CHUNK_KEY: canonical_json(asdict(chunk)).encode()}
        target = self.path(number)
        with replacing(target) as file:
            write_parquet(file, [table], self.schema.arrow.with_metadata(footer), self.schema.row_group)

    def exist(self) -> bool:
        """Return whether there is at least one chunk."""
        with suppress(FileNotFoundError):  # another process may remove the directory at this moment
            return any(entry.name.startswith("chunk-") for entry in self.directory.iterdir())
        return False

    def clear(self) -> None:
        """Remove all chunks."""
        if isinstance(self.directory, StorePath):
            remove_tree(self.directory)
            return
        for file in self.directory.glob("chunk-*"):
            file.unlink()

    def read(self, numbers: Mapping[int, Chunk], columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yield the named columns (None: all) of the given chunks, in order.

        Raises:
          IncompleteInput: a chunk was corrupted after it was committed.
        """
        names = self.schema.names if columns is None else columns
        fields = pa.schema([column.field for column in self.schema.select(names)])
        for number in sorted(numbers):
            yield read_columns(self.path(number), list(names), self.schema).cast(fields)
