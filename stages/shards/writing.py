"""Owns writing one part: skip what is up to date, refuse what differs, commit in chunks, resume, publish at once.

    with open_part(out, index, count, lineage, TRAJECTORIES, overwrite=False, progress=progress) as part:
        if not part.up_to_date:
            for i in part.missing([f"questions {r.start}-{r.stop}" for r in ranges]):
                part.commit(i, table, counts={"sampled": 123})
            part.finish()

Work in progress lies in `.part-00003-of-00008/`, invisible to readers; a part appears by a rename, complete. Whatever
ends the process, the same call goes on after the last committed chunk and gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import operator
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.core.errors import FingerprintMismatch, IncompleteInput, Interrupted, StoreUnreachable, UserError
from stages.core.paths import as_path, is_local
from stages.core.progress import Progress, Silent
from stages.shards.chunks import Chunk, Chunks
from stages.shards.disk import disk_errors, locked_chunks, replacing, write_parquet
from stages.shards.files import lineage_of, read_columns, read_footer
from stages.shards.lineage import FOOTER_KEY, Lineage, differences
from stages.shards.logs import PartLog
from stages.shards.parts import parse_part_name, part_name, work_differences
from stages.shards.schemas import Schema

_CHOICE = "Give another --out, or --overwrite to replace it"


@contextmanager
def open_part(
    directory: Path | str,
    index: int,
    count: int,
    lineage: Lineage,
    schema: Schema,
    *,
    overwrite: bool = False,
    progress: Progress = Silent(),
) -> Iterator[PartWriter]:
    """Opens part `index` of `count` for writing; `up_to_date` tells that there is nothing to do.

    Args:
      directory: of the artefact; made when work begins.
      lineage: of the work (`describe`); the part's own differs by its place.
      overwrite: replace a part of other work when this one is finished, and drop parts of another split then. Never
        what another stage or another tool wrote.
      progress: told what is skipped and where the work resumes.

    Raises:
      FingerprintMismatch: other work, or parts of another split, lie there and `overwrite` is not set; names what
        differs.
      UserError: another process writes this part, the disk is full, or the directory cannot be written.
      Interrupted: a signal, with how much is kept.
    """
    part = PartWriter(as_path(directory), index, count, lineage, schema, overwrite, progress)
    with ExitStack() as stack:
        with disk_errors(part.directory):
            part._check()
            if not part.up_to_date:
                part._held = held = stack.enter_context(locked_chunks(part._chunks.directory))
                if not held and is_local(part.directory):
                    progress.note(f"{part.directory} has no file locks: let no other process write {part.path.name}")
                if held:
                    part._check()  # again: another process may have finished it meanwhile
                part._adopt_chunks()
        try:
            yield part
        except Interrupted as error:
            part._log.end(f"interrupted: {error}")
            raise Interrupted(f"{error} ({part.path}: {part._progress()})") from error
        except BaseException as error:
            part._log.end(f"failed: {type(error).__name__}: {error}")
            raise


class PartWriter:
    """A part being written; made by `open_part`.

    Attributes:
      path: where the part is, or will be.
      lineage: the part's own; complete (counts, summary) once the part is.
      up_to_date: the part was there already, of the same work.
      rows: rows of the part, or committed so far.
    """

    def __init__(
        self, directory: Path, index: int, count: int, lineage: Lineage, schema: Schema, overwrite: bool, tell: Progress
    ) -> None:
        self.directory, self.schema = directory, schema
        self.path = directory / part_name(index, count)
        self.lineage = lineage.at(index, count)
        self.up_to_date = False
        self.rows = 0
        self._count, self._overwrite, self._tell = count, overwrite, tell
        self._chunks = Chunks(directory / f".{self.path.stem}", schema)
        self._log = PartLog(directory / "_logs" / f"{self.path.stem}.log")
        self._held = False
        self._keys: tuple[str, ...] = ()
        self._committed: dict[int, Chunk] = {}
        self._began = time.monotonic()

    def missing(self, chunks: Sequence[str]) -> Iterator[int]:
        """The chunks that are still to be done, in order.

        Args:
          chunks: a name for each chunk of the part that says which rows it covers ("questions 0-64"); a committed
            chunk is kept if it has the same name at the same place, others are dropped, saying so.
        """
        self._keys, self._committed = tuple(chunks), {}
        dropped = 0
        with disk_errors(self.directory):
            self._log.start(self.lineage.fingerprint)
            for number, file, chunk, _ in self._chunks.files():
                if chunk and number < len(self._keys) and chunk.key == self._keys[number]:
                    self._committed[number] = chunk
                else:
                    file.unlink(missing_ok=True)
                    dropped += 1
            self.rows = sum(chunk.rows for chunk in self._committed.values())
            if dropped:
                self._note(f"{self.path.name}: {dropped} chunks, torn or of another size, are done again")
            if self._committed:
                self._note(f"{self.path.name}: resuming, {self._progress()}")
        return iter([number for number in range(len(self._keys)) if number not in self._committed])

    def commit(
        self, chunk: int, table: pa.Table, counts: Mapping[str, int] = {}, figures: Mapping[str, float] = {}
    ) -> None:
        """Makes a chunk's rows permanent: from here on no crash loses them.

        Args:
          chunk: one that `missing` named.
          table: the schema's columns, in any order and of types that cast to its own.
          counts: whole numbers that depend on the rows alone; their sums over the part go into its lineage.
          figures: numbers that may differ between runs (seconds, tokens prefilled): into the log only.

        Raises:
          ValueError: columns, nulls or counts that the contract does not allow; a chunk that is not missing.
          UserError: the disk is full; what was committed before is kept.
        """
        if chunk in self._committed or not 0 <= chunk < len(self._keys):
            raise ValueError(f"chunk {chunk} is not one of the missing ones")
        done = Chunk(self._keys[chunk], table.num_rows, _whole(counts))
        with disk_errors(self._chunks.path(chunk)):
            self._chunks.write(chunk, self.schema.conform(table), done, self.lineage)
            self._committed[chunk] = done
            self.rows += done.rows
            told = "".join(f", {name} {value:g}" for name, value in {**done.counts, **figures}.items())
            self._log.write(f"chunk {chunk + 1} of {len(self._keys)}: {done.rows} rows{told}")

    def committed(self, columns: Sequence[str]) -> pa.Table:
        """These columns of all committed chunks in order, e.g. for the summary of a part that was resumed."""
        if self._is_overtaken():
            return read_columns(self.path, list(columns), self.schema)
        tables = list(self._chunks.read(self._committed, list(columns)))
        return pa.concat_tables(tables) if tables else self.schema.arrow.empty_table().select(list(columns))

    def finish(self, summary: Mapping[str, Any] | None = None) -> None:
        """Publishes the part: all chunks in order, with the sums of their counts and `summary` in its lineage.

        Raises:
          ValueError: chunks are missing.
          UserError: the disk is full; the chunks are kept.
        """
        if len(self._committed) < len(self._keys):
            raise ValueError(f"{self.path}: only {self._progress()}")
        if self._is_overtaken():
            return
        counts: dict[str, int] = {}
        for chunk in self._committed.values():
            for name, value in chunk.counts.items():
                counts[name] = counts.get(name, 0) + value
        try:
            self._publish(self._chunks.read(self._committed), counts, summary)
        except IncompleteInput:
            if not self._is_overtaken():  # while its chunks were read
                raise

    def write(self, table: pa.Table, counts: Mapping[str, int] = {}, summary: Mapping[str, Any] | None = None) -> None:
        """The whole part at once, for work too quick to be worth chunks: the same bytes, the same errors."""
        with disk_errors(self.directory):
            self._log.start(self.lineage.fingerprint)
        self._publish([self.schema.conform(table)], _whole(counts), summary)

    def _publish(self, tables: Iterable[pa.Table], counts: dict[str, int], summary: Mapping[str, Any] | None) -> None:
        lineage = dataclasses.replace(self.lineage, counts=counts, summary=dict(summary or {}))
        schema = self.schema.arrow.with_metadata({FOOTER_KEY: lineage.to_json().encode()})
        with disk_errors(self.path):
            with replacing(self.path, self._chunks.directory / ".whole.tmp") as file:
                rows = write_parquet(file, tables, schema, self.schema.row_group)
                self._remove_other_split()
            self.rows, self.lineage = rows, lineage
            self._chunks.clear()
            self._log.write(f"finished: {rows} rows in {time.monotonic() - self._began:.1f} s")

    def _check(self) -> None:
        """Finds the part up to date, or refuses other work in its place, beside it or unfinished."""
        others = self._other_split()
        if others and not self._overwrite:
            raise FingerprintMismatch(
                f"{self.directory} holds parts of another split ({others[0].name}; asked for {self._count}). {_CHOICE}"
            )
        siblings = sorted(self.directory.glob("part-*.parquet"))
        beside = [path for path in siblings if path != self.path and path not in others]
        if self.path in siblings and self._is_same_work(self.path, _part_differences):
            self._accept()
        elif beside:
            self._is_same_work(beside[0], work_differences)

    def _is_overtaken(self) -> bool:
        """Whether another process, which no lock kept away, has published this very part and removed its chunks."""
        if not self._held and not self.up_to_date:
            self._check()
        return self.up_to_date

    def _adopt_chunks(self) -> None:
        """Keeps the unfinished work of an earlier run if it is this work."""
        for _, file, chunk, _ in self._chunks.files():
            if chunk and not self._is_same_work(file, _part_differences):
                file.unlink(missing_ok=True)

    def _accept(self) -> None:
        footer = read_footer(self.path, self.schema)
        self.lineage = lineage_of(footer, self.path) or self.lineage
        self.up_to_date, self.rows = True, footer.num_rows
        if self._chunks.directory.exists():  # left by a crash just after publishing, or another process's
            with suppress(UserError), locked_chunks(self._chunks.directory):
                for _, file, _, there in self._chunks.files():
                    if there and there.fingerprint == self.lineage.fingerprint:
                        file.unlink(missing_ok=True)
        self._remove_other_split()
        self._tell.note(f"{self.path} is up to date ({self.rows} rows)")

    def _is_same_work(self, path: Path, compare: Callable[[Lineage, Lineage], list[str]]) -> bool:
        """Whether a file was made as is asked now; if not, only `overwrite` lets the work go on."""
        try:
            there = lineage_of(read_footer(path, self.schema), path)
        except StoreUnreachable:
            raise
        except (IncompleteInput, UserError) as error:
            problems = [str(error)]
        else:
            if there is None or there.stage != self.lineage.stage:
                author = f"`spo {there.stage}`" if there else "another tool"
                raise FingerprintMismatch(f"{path} was written by {author}: give another --out")
            problems = compare(there, self.lineage)
        if problems and not self._overwrite:
            raise FingerprintMismatch(f"{path} was made otherwise ({'; '.join(problems)}). {_CHOICE}")
        return not problems

    def _other_split(self) -> list[Path]:
        """Parts and unfinished parts that a run with another number of parts left in the directory."""
        found = [*sorted(self.directory.glob("part-*.parquet")), *sorted(self.directory.glob(".part-*"))]
        named = [parse_part_name(f"{path.name.removeprefix('.').removesuffix('.parquet')}.parquet") for path in found]
        others = [path for path, part in zip(found, named, strict=True) if part and part[1] != self._count]
        return [path for path in others if path.suffix or Chunks(path, self.schema).any()]

    def _remove_other_split(self) -> None:
        for path in self._other_split():
            if path.suffix:
                path.unlink(missing_ok=True)
            else:
                with locked_chunks(path):
                    Chunks(path, self.schema).clear()

    def _progress(self) -> str:
        return f"{len(self._committed)} of {len(self._keys)} chunks committed"

    def _note(self, line: str) -> None:
        self._tell.note(line)
        self._log.write(line)


def _part_differences(there: Lineage, asked: Lineage) -> list[str]:
    same = there.fingerprint == asked.fingerprint
    return [] if same else differences(there, asked) or ["its fingerprint"]


def _whole(counts: Mapping[str, int]) -> dict[str, int]:
    """Counts as plain integers: sums of fractions would depend on how the part was cut into chunks."""
    try:
        return {name: operator.index(value) for name, value in counts.items()}
    except TypeError as error:
        raise ValueError(f"counts must be whole numbers, got {dict(counts)}") from error
