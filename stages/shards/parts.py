"""Read an artefact: find its parts, check that all of them are complete and belong together, read their columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from stages.core.errors import IncompleteInput, UserError
from stages.core.paths import AnyPath, as_path, locate, relative_path
from stages.core.storage import file_digest
from stages.core.store import StorePath
from stages.shards import foreign
from stages.shards.files import corrupt_file, lineage_of, read_columns, read_footer
from stages.shards.lineage import Lineage, Source, combine, differences
from stages.shards.names import parse_part_name, part_name
from stages.shards.schemas import ARTEFACT, BY_STAGE, READER, Schema, recognize


@dataclass(frozen=True)
class Part:
    """One complete Parquet file of an artefact.

    Attributes:
      path: the file.
      index, count: the number of the part, from 0, and the number of parts; foreign files are numbered in the order of
        their names.
      rows, first_row: the number of rows, and the number of rows in all preceding parts.
      columns: the column names in the file.
      lineage: the lineage in its footer; None for a file that another tool wrote.
    """

    path: AnyPath
    index: int
    count: int
    rows: int
    first_row: int
    columns: tuple[str, ...]
    lineage: Lineage | None


@dataclass(frozen=True)
class Artefact:
    """A complete table: every part is present and complete.

    Attributes:
      path: the directory, or the single file, as the user gave it.
      schema: the schema of its table.
      parts: the parts in order.
    """

    path: AnyPath
    schema: Schema
    parts: tuple[Part, ...]

    @property
    def directory(self) -> AnyPath:
        """Return the directory of the parts; relative paths in their lineage start here."""
        return self.parts[0].path.parent

    def locate(self, reference: str) -> AnyPath:
        """Return the path of an input from the relative path in the lineage (`Source.path`)."""
        return locate(reference, self.directory)

    @property
    def rows(self) -> int:
        """Return the number of rows in all parts."""
        return sum(part.rows for part in self.parts)

    @property
    def lineage(self) -> Lineage | None:
        """Return the lineage of the first part (None: a foreign file); others differ in part number and inputs only."""
        return self.parts[0].lineage

    def fingerprint(self, part: Part | None = None) -> str:
        """Return the fingerprint of one part (from its lineage, or else of its bytes), or of all parts (None)."""
        if part is None:
            return combine([self.fingerprint(part) for part in self.parts])
        if part.lineage:
            return part.lineage.fingerprint
        content = file_digest(part.path)
        # Derived row ids continue from the preceding files, so the position is part of the identity.
        return combine([content, str(part.first_row)]) if part.first_row else content

    def read(self, part: Part, columns: Sequence[str]) -> pa.Table:
        """Return the named columns of a part, in this order and in the types of the schema.

        Raises:
          UserError: a foreign file lacks a column, or a column has wrong types or values (`stages.shards.foreign`).
          IncompleteInput: the part is truncated or corrupt.
        """
        if part.lineage:
            absent = [name for name in columns if name not in part.columns]
            if absent:
                raise corrupt_file(part.path, self.schema, f"it lacks the columns {', '.join(absent)}")
            table = read_columns(part.path, list(columns), self.schema)
            return table.cast(pa.schema([column.field for column in self.schema.select(columns)]))
        _ = self._foreign_rows_are_sound  # checks at the first access
        names = foreign.columns_to_read(self.schema, columns, part.columns, part.path)
        table = read_columns(part.path, names or list(part.columns[:1]), self.schema).select(names)
        return foreign.conform_foreign(table, self.schema, columns, part.first_row, part.path)

    def read_all(self, columns: Sequence[str]) -> pa.Table:
        """Return the named columns of all parts, in order. Raises the same errors as `read`."""
        return pa.concat_tables([self.read(part, columns) for part in self.parts])

    @cached_property
    def _foreign_rows_are_sound(self) -> bool:
        """Check all files without lineage once: for duplicate ids (some tools number the rows of each file from 0), and
        for numbers that are not finite, whether or not the first stage that reads the files needs them.
        """
        names = foreign.KEYS[self.schema.stage]
        foreign_parts = [part for part in self.parts if not part.lineage and set(names) <= set(part.columns)]
        if foreign_parts:
            foreign.check_unique(
                self.schema, [(part.path, read_columns(part.path, list(names), self.schema)) for part in foreign_parts]
            )
        for part in self.parts:
            if not part.lineage:
                numbers = [name for name in self.schema.numbers if name in part.columns]
                foreign.check_finite(read_columns(part.path, numbers, self.schema), self.schema, part.path)
        return True


def open_artefact(path: AnyPath | str, schema: Schema | None = None) -> Artefact:
    """Return the artefact in a directory or in a single .parquet file.

    Names that start with a dot or an underscore are ignored. Files named like parts (`part_name`) must be complete and
    belong to the same work; Parquet files with other names are foreign files and are read as they are.

    Args:
      schema: the expected schema; None recognizes it from the lineage or the columns.

    Raises:
      IncompleteInput: the path does not exist, parts are missing (the message names them), a part is truncated, or
        parts come from different work.
      UserError: parts of two splits are mixed, a file is not Parquet, or a part belongs to another stage (the message
        names the command that reads it).
    """
    path = as_path(path)
    files = _files(path, schema)
    with ThreadPoolExecutor(
        max_workers=1 if isinstance(path, Path) else 16
    ) as pool:  # requests to a store are slow, so they overlap
        footers = list(pool.map(lambda file: read_footer(file, schema), files))
    lineages = [lineage_of(footer, file) for footer, file in zip(footers, files, strict=True)]
    names = [tuple(footer.schema.to_arrow_schema().names) for footer in footers]
    found = schema or _recognize(path, names[0], lineages[0])
    parts: list[Part] = []
    for index, (file, footer, lineage) in enumerate(zip(files, footers, lineages, strict=True)):
        _check_stage(file, lineage, found)
        first_row = sum(part.rows for part in parts)
        parts.append(Part(file, index, len(files), footer.num_rows, first_row, names[index], lineage))
    _check_numbers(parts)
    _check_same_work(parts)
    return Artefact(path, found, tuple(parts))


def artefact_source(artefact: Artefact, directory: AnyPath, part: Part | None = None) -> Source:
    """Return an artefact, or one part of it, as an input (`Source`) of the work in `directory`."""
    return Source(relative_path(artefact.path, directory), artefact.fingerprint(part), artefact.schema.stage)


def work_differences(found: Lineage, requested: Lineage) -> list[str]:
    """Return `differences`, ignoring what may differ between parts of one artefact: number and input part."""

    def common(lineage: Lineage) -> Lineage:
        inputs = tuple(item for item in lineage.inputs if item.stage not in BY_STAGE)
        return dataclasses.replace(lineage, part=None, inputs=inputs)

    return differences(common(found), common(requested))


def _files(path: AnyPath, schema: Schema | None) -> list[AnyPath]:
    """Return the Parquet files of an artefact in order; check that no part is missing."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise IncompleteInput(f"{path} does not exist{_remedy(schema)}")
    visible = sorted(entry for entry in path.iterdir() if entry.name[0] not in "._")
    in_store = isinstance(path, StorePath)  # where `is_file` costs a request for each entry
    files = [entry for entry in visible if entry.suffix == ".parquet" and (in_store or entry.is_file())]
    if not files and visible:
        found = ", ".join(entry.name for entry in visible[:5])
        raise UserError(f"{path} contains no Parquet file (found: {found}{', …' * (len(visible) > 5)})")
    if not files:
        begun = any(path.glob(".part-*"))
        raise IncompleteInput(f"{path} contains {'only unfinished work' if begun else 'no part yet'}{_remedy(schema)}")
    numbers = {file: parse_part_name(file.name) for file in files}
    named = {file: number for file, number in numbers.items() if number}
    if not named:
        return files
    stray = next((file.name for file, number in numbers.items() if not number), None)
    if stray:
        raise UserError(f"{path} contains parts and another Parquet file, {stray}: move it to another directory")
    counts = sorted({count for _, count in named.values()})
    if len(counts) > 1:
        splits = " and of ".join(map(str, counts))
        raise UserError(f"{path} mixes parts of {splits}: keep one split and delete the parts of the others")
    _check_complete(path, {index for index, _ in named.values()}, counts[0], schema)
    return files


def _check_complete(path: AnyPath, present: set[int], count: int, schema: Schema | None) -> None:
    missing = [index for index in range(count) if index not in present]
    if not missing:
        return
    shown = ", ".join(map(str, missing[:20])) + (f" … ({len(missing)} in total)" if len(missing) > 20 else "")
    verb = "parts {} of {} are" if len(missing) > 1 else "part {} of {} is"
    raise IncompleteInput(f"{verb.format(shown, count)} missing in {path}{_remedy(schema)}; finished parts are skipped")


def _remedy(schema: Schema | None) -> str:
    if schema is None:
        return ": run the stage that writes it"
    return f": run `spo {schema.stage}`, which writes {ARTEFACT[schema.stage]}"


def _recognize(path: AnyPath, columns: tuple[str, ...], lineage: Lineage | None) -> Schema:
    schema = BY_STAGE.get(lineage.stage) if lineage else recognize(columns)
    if schema is None:
        raise UserError(f"{path} is not a table of spo: its columns are {', '.join(columns)}")
    return schema


def _check_stage(path: AnyPath, lineage: Lineage | None, schema: Schema) -> None:
    if lineage is None:
        return
    if lineage.stage != schema.stage:
        raise UserError(
            f"{path} holds {ARTEFACT.get(lineage.stage, 'another table')}, made by `spo {lineage.stage}`; expected "
            f"{ARTEFACT[schema.stage]}, made by `spo {schema.stage}`"
            + (f". `spo {READER[lineage.stage]}` reads it" if lineage.stage in READER else "")
        )
    if lineage.schema_version != schema.version:
        raise UserError(
            f"{path} has version {lineage.schema_version} of the table {ARTEFACT[schema.stage]}; this spo reads "
            f"version {schema.version}: write it again, or use the version of spo that wrote it ({lineage.versions})"
        )


def _check_numbers(parts: Sequence[Part]) -> None:
    """Check that no part was renamed to another part: the artefact would look complete and contain rows twice."""
    for part in parts:
        named, recorded = parse_part_name(part.path.name), part.lineage and part.lineage.part
        if named and recorded and part.lineage and named != recorded:
            raise IncompleteInput(
                f"{part.path} was written as {part_name(*recorded)}: restore that name, or delete the file and rerun "
                f"`spo {part.lineage.stage}`"
            )


def _check_same_work(parts: Sequence[Part]) -> None:
    with_lineage = [(part, part.lineage) for part in parts if part.lineage]
    for part, lineage in with_lineage[1:]:
        lines = work_differences(with_lineage[0][1], lineage)
        if lines:
            raise IncompleteInput(
                f"{part.path} comes from other work than {with_lineage[0][0].path.name} ({'; '.join(lines)}): "
                f"rerun `spo {lineage.stage}` with --overwrite for all parts"
            )
