"""Owns reading an artefact: which parts it has, whether they are all there and whole, what each one says of itself."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from stages.core.errors import IncompleteInput, UserError
from stages.core.paths import as_path, is_local, locate, relative_path
from stages.core.storage import file_digest
from stages.shards import foreign
from stages.shards.files import lineage_of, read_columns, read_footer, torn
from stages.shards.lineage import Lineage, Source, combine, differences
from stages.shards.schemas import ARTEFACT, BY_STAGE, READER, Schema, recognize

_PART_NAME = re.compile(r"part-(\d{5})-of-(\d{5})\.parquet")


@dataclass(frozen=True)
class Part:
    """One complete Parquet file of an artefact.

    Attributes:
      path: the file.
      index, count: its place, from its name; foreign files are numbered in the order of their names.
      rows, first_row: how many rows it has, and how many the parts before it have.
      columns: names found in the file.
      lineage: what it says of itself; None for a file from elsewhere.
    """

    path: Path
    index: int
    count: int
    rows: int
    first_row: int
    columns: tuple[str, ...]
    lineage: Lineage | None


@dataclass(frozen=True)
class Artefact:
    """A complete table: every part is there and whole.

    Attributes:
      path: the directory, or the single file, as it was given.
      schema: its contract.
      parts: in order.
    """

    path: Path
    schema: Schema
    parts: tuple[Part, ...]

    @property
    def directory(self) -> Path:
        """Where the parts lie; relative paths in their lineage start here."""
        return self.parts[0].path.parent

    def locate(self, told: str) -> Path:
        """The path that a source of its lineage tells."""
        return locate(told, self.directory)

    @property
    def rows(self) -> int:
        """Rows of all parts."""
        return sum(part.rows for part in self.parts)

    @property
    def lineage(self) -> Lineage | None:
        """How its first part was made, and so the others, but for their place; None for a file from elsewhere."""
        return self.parts[0].lineage

    def fingerprint(self, part: Part | None = None) -> str:
        """Of one part: its lineage's, else the digest of its bytes. Of the whole (None): of all parts in order."""
        if part is None:
            return combine([self.fingerprint(part) for part in self.parts])
        if part.lineage:
            return part.lineage.fingerprint
        content = file_digest(part.path)
        # The ids given to its rows count on from the parts before it, so they belong to what it is.
        return combine([content, str(part.first_row)]) if part.first_row else content

    def read(self, part: Part, columns: Sequence[str]) -> pa.Table:
        """Exactly these columns of a part, in this order and in the contract's types.

        Raises:
          UserError: a foreign file whose columns are missing, of another type or wrong (`stages.shards.foreign`).
          IncompleteInput: a part that turns out to be torn.
        """
        if part.lineage:
            absent = [name for name in columns if name not in part.columns]
            if absent:
                raise torn(part.path, self.schema, f"it lacks {', '.join(absent)}")
            table = read_columns(part.path, list(columns), self.schema)
            return table.cast(pa.schema([column.field for column in self.schema.select(columns)]))
        _ = self._foreign_ids_are_unique
        names = foreign.columns_to_read(self.schema, columns, part.columns, part.path)
        table = read_columns(part.path, names or list(part.columns[:1]), self.schema).select(names)
        return foreign.adopt(table, self.schema, columns, part.first_row, part.path)

    def read_all(self, columns: Sequence[str]) -> pa.Table:
        """Exactly these columns of all parts, in order. Raises as `read`."""
        return pa.concat_tables([self.read(part, columns) for part in self.parts])

    @cached_property
    def _foreign_ids_are_unique(self) -> bool:
        """Checked once, over all files without lineage: tools that number each file from 0 are caught here."""
        names = foreign.KEYS[self.schema.stage]
        alien = [part for part in self.parts if not part.lineage and set(names) <= set(part.columns)]
        if alien:
            foreign.check_unique(
                self.schema, [(part.path, read_columns(part.path, list(names), self.schema)) for part in alien]
            )
        return True


def part_name(index: int, count: int) -> str:
    """`part-00003-of-00008.parquet`."""
    return f"part-{index:05d}-of-{count:05d}.parquet"


def parse_part_name(name: str) -> tuple[int, int] | None:
    """(index, count) of a part's name; None for another name."""
    match = _PART_NAME.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def open_artefact(path: Path | str, schema: Schema | None = None) -> Artefact:
    """The artefact in a directory, or in a single .parquet file.

    Names that start with a dot or an underscore are not looked at. Files of other names than `part_name` gives are
    taken as they are; parts with such names must be complete and come from one and the same work.

    Args:
      schema: the one expected; None recognises it from the lineage or the columns.

    Raises:
      IncompleteInput: nothing there, parts missing (named), a torn part, parts of different work.
      UserError: two splits mixed, a file that is not Parquet, a part of another stage (saying which command takes it).
    """
    path = as_path(path)
    files = _files(path, schema)
    with ThreadPoolExecutor(max_workers=1 if is_local(path) else 16) as pool:  # a store takes its time to answer
        footers = list(pool.map(lambda file: read_footer(file, schema), files))
    lineages = [lineage_of(footer, file) for footer, file in zip(footers, files, strict=True)]
    names = [tuple(footer.schema.to_arrow_schema().names) for footer in footers]
    found = schema or _recognize(path, names[0], lineages[0])
    parts: list[Part] = []
    for index, (file, footer, lineage) in enumerate(zip(files, footers, lineages, strict=True)):
        _check_stage(file, lineage, found)
        first_row = sum(part.rows for part in parts)
        parts.append(Part(file, index, len(files), footer.num_rows, first_row, names[index], lineage))
    _check_places(parts)
    _check_same_work(parts)
    return Artefact(path, found, tuple(parts))


def artefact_source(artefact: Artefact, directory: Path, part: Part | None = None) -> Source:
    """An artefact (or one part of it) as an input of the work in `directory`."""
    return Source(relative_path(artefact.path, directory), artefact.fingerprint(part), artefact.schema.stage)


def work_differences(there: Lineage, asked: Lineage) -> list[str]:
    """`differences` between parts of one artefact: each may have its own place and its own part of the input."""

    def common(lineage: Lineage) -> Lineage:
        inputs = tuple(item for item in lineage.inputs if item.stage not in BY_STAGE)
        return dataclasses.replace(lineage, part=None, inputs=inputs)

    return differences(common(there), common(asked))


def _files(path: Path, schema: Schema | None) -> list[Path]:
    """The Parquet files of an artefact in order, checked for completeness."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise IncompleteInput(f"{path} does not exist{_remedy(schema)}")
    visible = sorted(entry for entry in path.iterdir() if entry.name[0] not in "._")
    files = [entry for entry in visible if entry.suffix == ".parquet" and (not is_local(path) or entry.is_file())]
    if not files and visible:
        found = ", ".join(entry.name for entry in visible[:5])
        raise UserError(f"{path} holds no Parquet parts (found: {found}{', …' * (len(visible) > 5)})")
    if not files:
        begun = any(path.glob(".part-*"))
        raise IncompleteInput(f"{path} holds {'only unfinished work' if begun else 'no part yet'}{_remedy(schema)}")
    places = {file: parse_part_name(file.name) for file in files}
    named = {file: place for file, place in places.items() if place}
    if not named:
        return files
    stray = next((file.name for file, place in places.items() if not place), None)
    if stray:
        raise UserError(f"{path} holds parts and, among them, {stray}, which is none: move it elsewhere")
    counts = sorted({count for _, count in named.values()})
    if len(counts) > 1:
        splits = " and of ".join(map(str, counts))
        raise UserError(f"{path} mixes parts of {splits}: keep one split and delete the parts of the others")
    _check_complete(path, {index for index, _ in named.values()}, counts[0], schema)
    return files


def _check_complete(path: Path, present: set[int], count: int, schema: Schema | None) -> None:
    missing = [index for index in range(count) if index not in present]
    if not missing:
        return
    shown = ", ".join(map(str, missing[:20])) + (f" … ({len(missing)} in all)" if len(missing) > 20 else "")
    verb = "parts {} of {} are" if len(missing) > 1 else "part {} of {} is"
    raise IncompleteInput(f"{verb.format(shown, count)} missing in {path}{_remedy(schema)}; finished parts are skipped")


def _remedy(schema: Schema | None) -> str:
    if schema is None:
        return ": run the stage that makes it"
    return f": `spo {schema.stage}` makes {ARTEFACT[schema.stage]}, run it (again)"


def _recognize(path: Path, columns: tuple[str, ...], lineage: Lineage | None) -> Schema:
    schema = BY_STAGE.get(lineage.stage) if lineage else recognize(columns)
    if schema is None:
        raise UserError(f"{path} is no table of spo: its columns are {', '.join(columns)}")
    return schema


def _check_stage(path: Path, lineage: Lineage | None, schema: Schema) -> None:
    if lineage is None:
        return
    if lineage.stage != schema.stage:
        raise UserError(
            f"{path} holds {ARTEFACT.get(lineage.stage, 'something else')}, made by `spo {lineage.stage}`; expected "
            f"{ARTEFACT[schema.stage]}, made by `spo {schema.stage}`"
            + (f". `spo {READER[lineage.stage]}` takes it" if lineage.stage in READER else "")
        )
    if lineage.schema_version != schema.version:
        raise UserError(
            f"{path} follows version {lineage.schema_version} of {ARTEFACT[schema.stage]}, this spo reads version "
            f"{schema.version}: make it again, or use the version of spo that made it ({lineage.versions})"
        )


def _check_places(parts: Sequence[Part]) -> None:
    """A part under the name of another would stand in for it: complete to look at, with the same rows twice."""
    for part in parts:
        place, told = parse_part_name(part.path.name), part.lineage and part.lineage.part
        if place and told and part.lineage and place != told:
            raise IncompleteInput(
                f"{part.path} is in truth {part_name(*told)}: give it that name again, or delete it and run "
                f"`spo {part.lineage.stage}` again"
            )


def _check_same_work(parts: Sequence[Part]) -> None:
    ours = [(part, part.lineage) for part in parts if part.lineage]
    for part, lineage in ours[1:]:
        lines = work_differences(ours[0][1], lineage)
        if lines:
            raise IncompleteInput(
                f"{part.path} is not of the same work as {ours[0][0].path.name} ({'; '.join(lines)}): "
                f"run `spo {lineage.stage}` again for all parts, with --overwrite"
            )
