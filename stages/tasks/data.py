"""Rows of data from Parquet, JSONL and CSV files, from directories of them, and from data sets of the Hugging Face hub.

A directory contains `train.*`, `validation.*`, `test.*`, or several files per split, named as on the hub (`train-*.*`).
A single file whose name starts with a split has that split only; any other single file serves as every split. A JSON
file holds one object per line, or one array of objects. A field of a struct is a column under its dotted name, such as
`reward_model.ground_truth`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.errors import UserError, first_line
from stages.core.json_files import parse_json
from stages.core.parquet import read_table
from stages.core.paths import AnyPath, as_path
from stages.core.storage import digest, file_digest
from stages.tasks import SPLITS, Split

_MAX_DEPTH = 8
"""Fields of objects that are nested deeper have no dotted names."""
SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")

Row = Mapping[str, Any]

ColumnChooser = Callable[[Sequence[str], str], Sequence[str]]
"""(available columns, location for error messages) → the columns to read; raises UserError if one is missing."""


@dataclass(frozen=True)
class DataSplits:
    """The splits of a data set. Rows are read on access.

    Attributes:
      source: the data as the user names it.
      digest: digest of the bytes of all files, or of all rows from the hub.
      splits: the files of each split, or its rows if the data came from the hub.
    """

    source: str
    digest: str
    splits: Mapping[Split, Sequence[AnyPath] | Sequence[Row]] = field(repr=False)

    def rows(self, split: Split, choose: ColumnChooser) -> list[tuple[str, dict[str, Any]]]:
        """Return (location, chosen columns) of each row of a split.

        A location such as `train.csv row 0` is for error messages. A column that a row lacks is None.

        Raises:
          UserError: the split does not exist or cannot be read; as `choose`.
        """
        if split not in self.splits:
            raise UserError(
                f"{self.source} has no {split} split; looked for {split}.*, {split}-*.* with * one of "
                f"{', '.join(SUFFIXES)}; found {', '.join(self.splits)}"
            )
        located: list[tuple[str, dict[str, Any]]] = []
        content = self.splits[split]
        for file in [one for one in content if isinstance(one, AnyPath)]:
            records = _READERS[file.suffix](file, choose)
            located += [(f"{file} row {i}", record) for i, record in enumerate(records)]
        if rows := [one for one in content if not isinstance(one, AnyPath)]:
            records = _select_columns(rows, choose, f"{self.source} {split}")
            located += [(f"{self.source} {split} row {i}", record) for i, record in enumerate(records)]
        return located


def read_rows(file: AnyPath) -> list[dict[str, Any]]:
    """Return all rows of a file with all columns, and the fields of structs under their dotted names.

    Raises:
      UserError: the file has another suffix, or cannot be read.
    """
    return _READERS[_checked_suffix(file)](file, lambda available, location: available)


def open_data(source: str, task: str, *, subset: str = "", revision: str = "") -> DataSplits:
    """Return the data at a path, or the data set of that name on the hub if no such path exists.

    Args:
      source: a path or the name of a data set on the hub.
      task: name of the task. If the directory has a subdirectory of this name, the subdirectory is read instead.
      subset, revision: configuration and commit (or tag) of a data set on the hub; "" is the default of the data set.

    Raises:
      UserError: there is no readable data.
    """
    path = as_path(source).expanduser()
    if not path.exists():
        return _load_from_hub(source, subset, revision)
    if subset or revision:
        raise UserError(f"--task-arg subset and revision apply to data sets on the hub; {source} is a local path")
    if (path / task).is_dir():
        path /= task
    files = _files_of_directory(path, task) if path.is_dir() else _splits_of_file(path)
    names = sorted({file for split_files in files.values() for file in split_files})
    try:
        digests = [file_digest(file) for file in names]
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error}") from error
    return DataSplits(str(path), digest(" ".join(digests).encode()), files)


def _files_of_directory(directory: AnyPath, task: str) -> dict[Split, list[AnyPath]]:
    files: dict[Split, list[AnyPath]] = {
        split: sorted(
            file for suffix in SUFFIXES for name in (split, f"{split}-*") for file in directory.glob(name + suffix)
        )
        for split in SPLITS
    }
    if not any(files.values()):
        raise UserError(
            f"{directory} contains no directory {task} and no file train.*, validation.* or test.* with * one of "
            f"{', '.join(SUFFIXES)}"
        )
    return {split: split_files for split, split_files in files.items() if split_files}


def _checked_suffix(file: AnyPath) -> str:
    if file.suffix not in SUFFIXES:
        raise UserError(f"{file} must end in one of {', '.join(SUFFIXES)}; got {file.suffix!r}")
    return file.suffix


def _splits_of_file(file: AnyPath) -> dict[Split, list[AnyPath]]:
    _checked_suffix(file)
    # No letter may follow the name of the split: `train_v2.csv` is a train split, `training.csv` is not.
    named: list[Split] = [split for split in SPLITS if re.match(rf"{split}(?![A-Za-z])", file.name)]
    return {split: [file] for split in named or SPLITS}


def _read_parquet(file: AnyPath, choose: ColumnChooser) -> list[dict[str, Any]]:
    try:
        with file.open("rb") as opened:
            parquet = pq.ParquetFile(opened)
            columns = choose(field_names(parquet.schema_arrow), str(file))
            whole = dict.fromkeys(_owner(name, parquet.schema_arrow.names) for name in columns)
            table = read_table(file, parquet, list(whole))
            return [{name: _field(row, name) for name in columns} for row in table_rows(table)]
    except (UserError, MemoryError):  # they are a ValueError and, from pyarrow, an ArrowException
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as Parquet: {first_line(error)}") from error


def field_names(schema: pa.Schema | pa.StructType, before: str = "") -> list[str]:
    """Return the names of all columns, and after each struct the dotted names of its fields."""
    names = []
    for column in schema:
        names.append(before + column.name)
        if pa.types.is_struct(column.type):
            names += field_names(column.type, f"{names[-1]}.")
    return names


def table_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Return rows as Python values, with numbers of 16 or 32 bits as the shortest decimals that they stand for.

    Python's own conversion of a float32 0.1 is 0.10000000149011612.
    """
    columns = {name: table[name].to_pylist() for name in table.column_names}
    for column in table.schema:
        if "float" in str(column.type):  # at any depth; a float16 is a `halffloat`
            columns[column.name] = [_shorten(value, column.type) for value in columns[column.name]]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _shorten(value: Any, type: pa.DataType) -> Any:
    """Return a value of a column with its short floating-point numbers as the shortest decimals."""
    if isinstance(value, float) and (pa.types.is_float32(type) or pa.types.is_float16(type)):
        return float(str(np.float32(value) if pa.types.is_float32(type) else np.float16(value)))
    if isinstance(value, dict) and pa.types.is_struct(type):
        return {name: _shorten(one, type.field(name).type) for name, one in value.items()}
    if isinstance(value, list) and hasattr(type, "value_type"):
        return [_shorten(one, type.value_type) for one in value]
    return value


def _read_json(file: AnyPath, choose: ColumnChooser) -> list[dict[str, Any]]:
    """Read one object per line, or one array of objects."""
    text = _read_file(file)
    if text.lstrip().startswith("["):
        located = [(f"{file} row {i}", record) for i, record in enumerate(_parse_json(text, str(file)))]
    else:
        # Not `splitlines`: it would also split at U+2028, which a JSON string may contain.
        lines = [(f"{file} line {i}", line) for i, line in enumerate(text.split("\n"), start=1) if line.strip()]
        located = [(place, _parse_json(line, place)) for place, line in lines]
    for place, record in located:
        if not isinstance(record, dict):
            raise UserError(f"{place} must be a JSON object; got {json.dumps(record)[:60]}")
    return _select_columns([record for _, record in located], choose, str(file))


def _parse_json(text: str, location: str) -> Any:
    try:
        value = parse_json(text, location)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UserError as error:
        raise UserError(f"{error}; expected one object per line, or one array of objects") from error
    except UnicodeEncodeError as error:  # "\ud800" alone is valid JSON, but no tokenizer or file can encode it
        raise UserError(f"{location} has an unpaired surrogate, which is not text: {error}") from error
    return value


def _read_csv(file: AnyPath, choose: ColumnChooser) -> list[dict[str, Any]]:
    # Line ends stay as they are: within quotes they belong to a field.
    reader = csv.DictReader(io.StringIO(_read_file(file, newline=""), newline=""), strict=True)
    try:
        records = list(reader)
    except csv.Error as error:
        raise UserError(f"{file} line {reader.line_num} is not CSV: {error}") from error
    names = list(reader.fieldnames or ())
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{file} names the column {repeated} twice; found {', '.join(names)}")
    for i, record in enumerate(records):
        if None in record:  # DictReader collects surplus fields under the key None
            raise UserError(f"{file} row {i} has more fields than the header names")
    return _select_columns(records, choose, str(file))


def _read_file(file: AnyPath, newline: str | None = None) -> str:
    try:
        with file.open(encoding="utf-8-sig", newline=newline) as opened:  # spreadsheets write a byte order mark
            return opened.read()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text: {error}") from error


_READERS = {".parquet": _read_parquet, ".jsonl": _read_json, ".json": _read_json, ".csv": _read_csv}


def _select_columns(records: Sequence[Row], choose: ColumnChooser, location: str) -> list[dict[str, Any]]:
    if not records:
        return []
    names = list(dict.fromkeys(name for record in records for name in _record_names(record)))
    columns = choose(names, location)
    return [{name: _field(record, name) for name in columns} for record in records]


def _record_names(record: Row, before: str = "") -> Iterator[str]:
    """Yield the names of a record's columns, and after each object the dotted names of its fields."""
    for name, value in record.items():
        yield before + name
        if isinstance(value, dict) and before.count(".") < _MAX_DEPTH:
            yield from _record_names(value, f"{before}{name}.")


def _field(record: Row, name: str) -> Any:
    """Return the value of a column, or of a field with a dotted name; None if the record lacks it."""
    if name in record:
        return record[name]
    for at in range(len(name)):  # a name may contain dots of its own
        if name[at] == "." and isinstance(inner := record.get(name[:at]), dict):
            return _field(inner, name[at + 1 :])
    return None


def _owner(name: str, columns: Sequence[str]) -> str:
    """Return the column of a table that holds a field with a dotted name; a column holds itself."""
    while name not in columns and "." in name:
        name = name.rpartition(".")[0]
    return name


def _load_from_hub(name: str, subset: str, revision: str) -> DataSplits:
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(SUFFIXES):  # a path, not a hub name
        raise UserError(f"there is no file or directory {name}")
    try:
        import datasets  # pyright: ignore[reportMissingImports] -- the extra `hub`
    except ImportError as error:
        raise UserError(
            f"{name} is not a local file; to load it from the Hugging Face hub, install the datasets package: "
            "pip install 'spo-cli[hub]'"
        ) from error
    try:
        loaded: Mapping[str, Any] = datasets.load_dataset(name, subset or None, revision=revision or None)  # type: ignore[assignment]
    except (OSError, ValueError, RuntimeError) as error:  # hub, configuration and network errors derive from these
        raise UserError(
            f"data {name} is not a local file and cannot be loaded from the Hugging Face hub: {first_line(error)}"
        ) from error
    splits: dict[Split, Sequence[Row]] = {
        split: table_rows(loaded[split].with_format("arrow")[:]) for split in SPLITS if split in loaded
    }
    if not splits:
        raise UserError(f"{name} has none of the splits {', '.join(SPLITS)}; found {', '.join(loaded)}")
    content = json.dumps(splits, default=str)
    return DataSplits(name, digest(content.encode()), splits)
