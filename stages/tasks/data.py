"""Rows of data from Parquet, JSONL and CSV files, from directories of them, and from data sets of the Hugging Face hub.

A directory contains `train.*`, `validation.*`, `test.*`, or several files per split, named as on the hub (`train-*.*`).
A single file whose name starts with a split has that split only; any other single file serves as every split.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.errors import UserError, first_line
from stages.core.json_files import parse_json
from stages.core.paths import as_path
from stages.core.storage import digest, file_digest
from stages.tasks import SPLITS, Split

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
    splits: Mapping[Split, Sequence[Path] | Sequence[Row]] = field(repr=False)

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
        for file in [one for one in content if isinstance(one, Path)]:
            records = _READERS[file.suffix](file, choose)
            located += [(f"{file} row {i}", record) for i, record in enumerate(records)]
        if rows := [one for one in content if not isinstance(one, Path)]:
            records = _select_columns(rows, choose, f"{self.source} {split}")
            located += [(f"{self.source} {split} row {i}", record) for i, record in enumerate(records)]
        return located


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


def _files_of_directory(directory: Path, task: str) -> dict[Split, list[Path]]:
    files: dict[Split, list[Path]] = {
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


def _splits_of_file(file: Path) -> dict[Split, list[Path]]:
    if file.suffix not in SUFFIXES:
        raise UserError(f"{file} must end in one of {', '.join(SUFFIXES)}; got {file.suffix!r}")
    # No letter may follow the name of the split: `train_v2.csv` is a train split, `training.csv` is not.
    named: list[Split] = [split for split in SPLITS if re.match(rf"{split}(?![A-Za-z])", file.name)]
    return {split: [file] for split in named or SPLITS}


def _read_parquet(file: Path, choose: ColumnChooser) -> list[dict[str, Any]]:
    try:
        with file.open("rb") as opened:
            parquet = pq.ParquetFile(opened)
            columns = choose(parquet.schema_arrow.names, str(file))
            return parquet.read(columns=list(columns)).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as Parquet: {first_line(error)}") from error


def _read_json_lines(file: Path, choose: ColumnChooser) -> list[dict[str, Any]]:
    records = []
    # Not `splitlines`: it would also split at U+2028, which a JSON string may contain.
    for number, line in enumerate(_read_file(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = parse_json(line, f"{file} line {number}")
            if "\\u" in line:
                json.dumps(record, ensure_ascii=False).encode()
        except UserError as error:
            raise UserError(f"{error}; expected one object per line") from error
        except UnicodeEncodeError as error:  # "\ud800" alone is valid JSON, but no tokenizer or file can encode it
            raise UserError(f"{file} line {number} has an unpaired surrogate, which is not text: {error}") from error
        if not isinstance(record, dict):
            raise UserError(f"{file} line {number} must be a JSON object; got {line[:60]!r}")
        records.append(record)
    return _select_columns(records, choose, str(file))


def _read_csv(file: Path, choose: ColumnChooser) -> list[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(_read_file(file), newline=""), strict=True)
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


def _read_file(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")  # spreadsheets write a byte order mark
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text: {error}") from error


_READERS = {".parquet": _read_parquet, ".jsonl": _read_json_lines, ".json": _read_json_lines, ".csv": _read_csv}


def _select_columns(records: Sequence[Row], choose: ColumnChooser, location: str) -> list[dict[str, Any]]:
    if not records:
        return []
    columns = choose(list(dict.fromkeys(name for record in records for name in record)), location)
    return [{name: record.get(name) for name in columns} for record in records]


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
    splits: dict[Split, list[Row]] = {split: list(loaded[split]) for split in SPLITS if split in loaded}
    if not splits:
        raise UserError(f"{name} has none of the splits {', '.join(SPLITS)}; found {', '.join(loaded)}")
    content = json.dumps(splits, default=str)
    return DataSplits(name, digest(content.encode()), splits)
