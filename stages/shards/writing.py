"""Write one part: skip it if it is up to date, refuse to replace other work, commit chunks, resume, publish.

    with open_part(out, index, count, lineage, TRAJECTORIES, overwrite=False, progress=progress) as part:
        if not part.up_to_date:
            for i in part.missing([f"questions {r.start}-{r.stop}" for r in ranges]):
                part.commit(i, table, counts={"sampled": 123})
            part.finish()

Committed chunks are in `.part-00003-of-00008/`, which readers ignore; the complete part appears by a rename. However
the process ends, the same call resumes after the last committed chunk and writes the same bytes.
"""

from __future__ import annotations

import dataclasses
import operator
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.core.errors import FingerprintMismatch, IncompleteInput, Interrupted, StoreUnreachable, UserError
from stages.core.paths import AnyPath, as_path, log_directory
from stages.core.progress import Progress, Silent
from stages.core.storage import replacing
from stages.shards import kept_samples
from stages.shards.chunks import Chunk, Chunks
from stages.shards.disk import disk_errors, locked_chunks, write_parquet
from stages.shards.files import lineage_of, read_columns, read_footer
from stages.shards.kept_samples import KeptSamples
from stages.shards.lineage import FOOTER_KEY, Lineage, differences
from stages.shards.logs import PartLog
from stages.shards.names import parse_part_name, part_name
from stages.shards.parts import work_differences
from stages.shards.places import check_place
from stages.shards.schemas import Schema

_REMEDY = "Choose another --out, or pass --overwrite to replace it"
_CLEARING_SECONDS = 5.0
"""How long a part waits for another part of its split that removes the same chunks; this takes milliseconds."""


@contextmanager
def open_part(
    directory: AnyPath | str,
    index: int,
    count: int,
    lineage: Lineage,
    schema: Schema,
    *,
    overwrite: bool = False,
    progress: Progress = Silent(),
) -> Iterator[PartWriter]:
    """Open part `index` of `count` for writing. If `up_to_date` is set on the result, there is nothing to do.

    Args:
      directory: the directory of the artefact; created when work begins.
      index, count: the number of the part, from 0, and the number of parts.
      lineage: the lineage of the work (`describe`), without a part number.
      schema: the schema of the table.
      overwrite: when this part is finished, replace a part of other work and delete parts of another split. Files that
        another stage or another tool wrote are never replaced.
      progress: receives notes about skipped parts and resumed work.

    Raises:
      FingerprintMismatch: the directory contains other work, or parts of another split, and `overwrite` is not set. The
        message names the differences.
      UserError: another process writes this part, the disk is full, or the directory is not writable.
      Interrupted: a signal arrived; the message says how much work is kept.
    """
    part = PartWriter(as_path(directory), index, count, lineage, schema, overwrite, progress)
    with ExitStack() as stack:
        with disk_errors(part.directory):
            check_place(part.directory, "artefact")
            part._check()
            if not part.up_to_date:
                part._held = held = stack.enter_context(locked_chunks(part._chunks.directory))
                if not held and isinstance(part.directory, Path):
                    progress.note(
                        f"{part.directory} has no file locks: do not let another process write {part.path.name}"
                    )
                if held:
                    part._check()  # again: another process may have finished the part before this one held the lock
                part._keep_matching_chunks()
        try:
            yield part
        except Interrupted as error:
            part._log.end(f"interrupted: {error}")
            raise Interrupted(f"{error} ({part.path}: {part._progress()})") from error
        except BaseException as error:  # the log says how the work ended, whatever ended it
            part._log.end(f"failed: {type(error).__name__}: {error}")
            raise


class PartWriter:
    """A part that is being written; `open_part` creates it.

    Attributes:
      directory: the directory of the artefact.
      schema: the schema of the table.
      path: the path of the finished part.
      lineage: the lineage of the part; counts and summary are set once the part is finished.
      up_to_date: whether the part already existed with the same fingerprint.
      rows: the number of rows in the part, or committed so far.
    """

    def __init__(
        self,
        directory: AnyPath,
        index: int,
        count: int,
        lineage: Lineage,
        schema: Schema,
        overwrite: bool,
        notes: Progress,
    ) -> None:
        self.directory, self.schema = directory, schema
        self.path = directory / part_name(index, count)
        self.lineage = lineage.at(index, count)
        self.up_to_date = False
        self.rows = 0
        self._count, self._overwrite, self._notes = count, overwrite, notes
        self._chunks = Chunks(directory / f".{self.path.stem}", schema)
        self._log = PartLog(log_directory(directory) / f"{self.path.stem}.log")
        self._held = False
        self._keys: tuple[str, ...] = ()
        self._committed: dict[int, Chunk] = {}
        self._began = time.monotonic()

    def missing(self, chunks: Sequence[str]) -> Iterator[int]:
        """Return the numbers of the chunks that are not committed yet, in order.

        Args:
          chunks: a key for each chunk of the part that says which rows it covers ("questions 0-64"). A committed chunk
            is kept if its key is the same; other committed chunks are deleted, with a note.
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
                self._note(f"{self.path.name}: {dropped} chunks are corrupt or of another size and are redone")
            if self._committed:
                self._note(f"{self.path.name}: resuming, {self._progress()}")
        return iter([number for number in range(len(self._keys)) if number not in self._committed])

    def commit(
        self, chunk: int, table: pa.Table, counts: Mapping[str, int] = {}, figures: Mapping[str, float] = {}
    ) -> None:
        """Commit the rows of a chunk: after this call no crash loses them.

        Args:
          chunk: a number that `missing` returned.
          table: the columns of the schema, in any order, of types that cast to those of the schema.
          counts: whole numbers that depend on the rows alone; their sums over the part are stored in its lineage.
          figures: numbers that may differ between runs (seconds, tokens prefilled); they are written to the log only.

        Raises:
          ValueError: the table or the counts are not as specified, or the chunk is already committed.
          UserError: the disk is full; previously committed chunks are kept.
        """
        if chunk in self._committed or not 0 <= chunk < len(self._keys):
            raise ValueError(f"chunk {chunk} is not one of the missing ones")
        done = Chunk(self._keys[chunk], table.num_rows, _integers(counts))
        with disk_errors(self._chunks.path(chunk)):
            self._chunks.write(chunk, self.schema.conform(table), done, self.lineage)
            for file in self._chunks.samples_files(chunk):
                file.unlink(missing_ok=True)
            self._committed[chunk] = done
            self.rows += done.rows
            amounts = "".join(f", {name} {value:g}" for name, value in {**done.counts, **figures}.items())
            self._log.write(f"chunk {chunk + 1} of {len(self._keys)}: {done.rows} rows{amounts}")

    def kept_samples(self, chunk: int) -> KeptSamples:
        """Return where the finished samples of a chunk are kept until it is committed, with those of earlier runs.

        Raises:
          FingerprintMismatch: they belong to other work, and `overwrite` is not set.
        """
        with disk_errors(self.directory):
            earlier = []
            for path in self._chunks.samples_files(chunk):
                lineage = kept_samples.read_lineage(path)
                problems = ["it is corrupt"] if lineage is None else _part_differences(lineage, self.lineage)
                if lineage and problems and not self._overwrite:
                    raise FingerprintMismatch(f"{path} was made with other settings ({'; '.join(problems)}). {_REMEDY}")
                if problems:
                    path.unlink(missing_ok=True)
                else:
                    earlier.append(path)
            kept = KeptSamples(partial(self._chunks.samples_path, chunk), self.lineage, earlier)
        if kept.found:
            self._note(f"{self.path.name}: resuming with {len(kept.found)} finished samples of an unfinished chunk")
        return kept

    def committed(self, columns: Sequence[str]) -> pa.Table:
        """Return the named columns of all committed chunks in order, e.g. for the summary of a resumed part."""
        if self._was_published_elsewhere():
            return read_columns(self.path, list(columns), self.schema)
        tables = list(self._chunks.read(self._committed, list(columns)))
        return pa.concat_tables(tables) if tables else self.schema.arrow.empty_table().select(list(columns))

    def finish(self, summary: Mapping[str, Any] | None = None) -> None:
        """Publish the part: write all chunks in order, with the sums of their counts and `summary` in its lineage.

        Raises:
          ValueError: chunks are missing.
          UserError: the disk is full; the committed chunks are kept.
        """
        if len(self._committed) < len(self._keys):
            raise ValueError(f"{self.path}: only {self._progress()}")
        if self._was_published_elsewhere():
            return
        counts: dict[str, int] = {}
        for chunk in self._committed.values():
            for name, value in chunk.counts.items():
                counts[name] = counts.get(name, 0) + value
        try:
            self._publish(self._chunks.read(self._committed), counts, summary)
        except IncompleteInput:
            if not self._was_published_elsewhere():  # its chunks were removed while this process read them
                raise

    def write(self, table: pa.Table, counts: Mapping[str, int] = {}, summary: Mapping[str, Any] | None = None) -> None:
        """Write the whole part without chunks, for work that takes little time; bytes and errors are the same."""
        with disk_errors(self.directory):
            self._log.start(self.lineage.fingerprint)
        self._publish([self.schema.conform(table)], _integers(counts), summary)

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
        """Set `up_to_date` if the part exists; raise FingerprintMismatch if it, or a part next to it, is other work."""
        others = self._other_split()
        if others and not self._overwrite:
            raise FingerprintMismatch(
                f"{self.directory} holds parts of another split (found {others[0].name}, requested {self._count} "
                f"parts). {_REMEDY}"
            )
        siblings = sorted(self.directory.glob("part-*.parquet"))
        same_split = [path for path in siblings if path != self.path and path not in others]
        if self.path in siblings and self._is_same_work(self.path, _part_differences, with_rows=True):
            self._use_existing()
        elif same_split:  # all parts of a split come from the same work, so one is enough
            self._is_same_work(same_split[0], work_differences)

    def _was_published_elsewhere(self) -> bool:
        """Return whether another process published this part and removed its chunks; possible only without a lock."""
        if not self._held and not self.up_to_date:
            self._check()
        return self.up_to_date

    def _keep_matching_chunks(self) -> None:
        """Keep the chunks of an earlier run of the same work; delete those of other work if `overwrite` allows it."""
        for _, file, chunk, _ in self._chunks.files():
            if chunk and not self._is_same_work(file, _part_differences):
                file.unlink(missing_ok=True)

    def _use_existing(self) -> None:
        """Mark the part as up to date and remove what a crash or `overwrite` left next to it."""
        footer = read_footer(self.path, self.schema)
        self.lineage = lineage_of(footer, self.path) or self.lineage
        self.up_to_date, self.rows = True, footer.num_rows
        if self._chunks.directory.exists():  # a crash right after publishing left it, or another process uses it
            with suppress(UserError), locked_chunks(self._chunks.directory):
                for _, file, _, lineage in self._chunks.files():
                    if lineage and lineage.fingerprint == self.lineage.fingerprint:
                        file.unlink(missing_ok=True)
        self._remove_other_split()
        self._notes.note(f"{self.path} is up to date ({self.rows} rows)")

    def _is_same_work(
        self, path: AnyPath, compare: Callable[[Lineage, Lineage], list[str]], *, with_rows: bool = False
    ) -> bool:
        """Return whether a file is sound and comes from the requested work; raise unless `overwrite` if it is not.

        Args:
          with_rows: whether to verify the rows, too. This reads the file: 2 million tokens take 0.1 s of a processor.
            In a store, whose own checksums protect the rows, it is left to those who read them.
        """
        try:
            found = lineage_of(read_footer(path, self.schema), path)
            if found and with_rows and isinstance(path, Path):
                read_columns(path, None, self.schema)
        except StoreUnreachable:
            raise
        except (IncompleteInput, UserError) as error:
            if self._overwrite:
                return False
            raise type(error)(f"{error}, or pass --overwrite to replace it") from error
        except FileNotFoundError as error:
            raise StoreUnreachable(
                f"{path} is listed and cannot be opened: another process is writing it, or the file system lags. Rerun "
                "the command"
            ) from error
        if found is None or found.stage != self.lineage.stage:
            author = f"`spo {found.stage}`" if found else "another tool"
            raise FingerprintMismatch(f"{path} was written by {author}: choose another --out")
        problems = compare(found, self.lineage)
        if problems and not self._overwrite:
            raise FingerprintMismatch(f"{path} was made with other settings ({'; '.join(problems)}). {_REMEDY}")
        return not problems

    def _other_split(self) -> list[AnyPath]:
        """Return the parts, and the directories of chunks, of runs with another number of parts."""
        found = [*sorted(self.directory.glob("part-*.parquet")), *sorted(self.directory.glob(".part-*"))]
        named = [parse_part_name(f"{path.name.removeprefix('.').removesuffix('.parquet')}.parquet") for path in found]
        others = [path for path, part in zip(found, named, strict=True) if part and part[1] != self._count]
        return [path for path in others if path.suffix or Chunks(path, self.schema).exist()]

    def _remove_other_split(self) -> None:
        for path in self._other_split():
            if path.suffix:
                path.unlink(missing_ok=True)
            else:
                self._remove_chunks(path)

    def _remove_chunks(self, directory: AnyPath) -> None:
        """Remove the chunks of another split; wait for another part that is removing them.

        Raises:
          UserError: a process of the other split still writes there.
        """
        deadline = time.monotonic() + _CLEARING_SECONDS
        while True:
            try:
                with locked_chunks(directory):
                    return Chunks(directory, self.schema).clear()
            except UserError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(0.02)

    def _progress(self) -> str:
        if not self._keys:
            return "no work begun"
        return f"{len(self._committed)} of {len(self._keys)} chunks committed"

    def _note(self, line: str) -> None:
        self._notes.note(line)
        self._log.write(line)


def _part_differences(found: Lineage, requested: Lineage) -> list[str]:
    same = found.fingerprint == requested.fingerprint
    return [] if same else differences(found, requested) or ["its fingerprint"]


def _integers(counts: Mapping[str, int]) -> dict[str, int]:
    """Return counts as integers: sums of fractions would depend on how the part is divided into chunks."""
    try:
        return {name: operator.index(value) for name, value in counts.items()}
    except TypeError as error:
        raise ValueError(f"counts must be whole numbers, got {dict(counts)}") from error
