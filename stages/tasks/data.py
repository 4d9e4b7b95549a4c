"""Owns reading rows of data: Parquet, JSONL and CSV files, directories of them, data sets of the Hugging Face hub.

A directory holds `train.*`, `validation.*`, `test.*` (or `train-*.*` …, as the hub names parts). A file whose name
begins with a split serves that split, any other file serves whichever is asked for.
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

from stages.core.errors import UserError, first_line
from stages.core.paths import as_path
from stages.core.storage import digest, file_digest
from stages.tasks import SPLITS, Split

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")

Row = Mapping[str, Any]

Choose = Callable[[Sequence[str], str], Sequence[str]]
"""(the columns that are there, where that is) → those that are wanted; raises UserError where one is missing."""


@dataclass(frozen=True)
class Data:
    """Rows of some splits, read when they are asked for.

    Attributes:
      source: the data as the user names it.
      digest: of all its bytes.
      splits: the files of each split, or the rows themselves where they came from the hub.
    """

    source: str
    digest: str
    splits: Mapping[Split, Sequence[Path] | Sequence[Row]] = field(repr=False)

    def rows(self, split: Split, choose: Choose) -> list[tuple[str, dict[str, Any]]]:
        """Each row's place, for messages, and its chosen columns (None where the row lacks one); numbered from 0.

        Raises:
          UserError: there is no such split, or it cannot be read.
        """
        if split not in self.splits:
            raise UserError(
                f"{self.source} has no {split} split; looked for {split}.*, {split}-*.* with * one of "
                f"{', '.join(SUFFIXES)}; found {', '.join(self.splits)}"
            )
        found: list[tuple[str, dict[str, Any]]] = []
        content = self.splits[split]
        for file in [one for one in content if isinstance(one, Path)]:
            records = _READERS[file.suffix](file, choose)
            found += [(f"{file} row {i}", record) for i, record in enumerate(records)]
        if rows := [one for one in content if not isinstance(one, Path)]:
            records = _choose(rows, choose, f"{self.source} {split}")
            found += [(f"{self.source} {split} row {i}", record) for i, record in enumerate(records)]
        return found


def open_data(source: str, task: str, *, subset: str = "", revision: str = "") -> Data:
    """The data at a path, else that of a name on the hub.

    Args:
      task: a directory may hold one directory per task, of this name.
      subset, revision: configuration and commit (or tag) of a data set on the hub; "" are its own defaults.

    Raises:
      UserError: none found there.
    """
    path = as_path(source).expanduser()
    if not path.exists():
        return _load_from_hub(source, subset, revision)
    if subset or revision:
        raise UserError(f"--task-arg subset and revision belong to data sets on the hub; {source} lies here")
    if (path / task).is_dir():
        path /= task
    files = _files_of_directory(path, task) if path.is_dir() else _splits_of_file(path)
    names = sorted({file for of_split in files.values() for file in of_split})
    try:
        digests = [file_digest(file) for file in names]
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error}") from error
    return Data(str(path), digest(" ".join(digests).encode()), files)


def _files_of_directory(directory: Path, task: str) -> dict[Split, list[Path]]:
    files: dict[Split, list[Path]] = {
        split: sorted(
            file for suffix in SUFFIXES for name in (split, f"{split}-*") for file in directory.glob(name + suffix)
        )
        for split in SPLITS
    }
    if not any(files.values()):
        raise UserError(
            f"{directory} holds none of train, validation, test as {', '.join(SUFFIXES)}, nor a directory {task}"
        )
    return {split: of_split for split, of_split in files.items() if of_split}


def _splits_of_file(file: Path) -> dict[Split, list[Path]]:
    if file.suffix not in SUFFIXES:
        raise UserError(f"{file} is neither {', '.join(SUFFIXES[:-1])} nor {SUFFIXES[-1]}")
    named: list[Split] = [split for split in SPLITS if re.match(rf"{split}(?![A-Za-z])", file.name)]
    return {split: [file] for split in named or SPLITS}


def _read_parquet(file: Path, choose: Choose) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with file.open("rb") as opened:
            parquet = pq.ParquetFile(opened)
            columns = choose(parquet.schema_arrow.names, str(file))
            return parquet.read(columns=list(columns)).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file} cannot be read as Parquet: {error}") from error


def _read_json_lines(file: Path, choose: Choose) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(_read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if "\\u" in line:
                json.dumps(record, ensure_ascii=False).encode()
        except json.JSONDecodeError as error:
            raise UserError(f"{file} line {number} is not JSON: {error}; expected one object per line") from error
        except UnicodeEncodeError as error:  # \ud800 alone is JSON, and no text
            raise UserError(f"{file} line {number} has half a character that no text can hold: {error}") from error
        if not isinstance(record, dict):
            raise UserError(f"{file} line {number} must be a JSON object; got {line[:60]!r}")
        records.append(record)
    return _choose(records, choose, str(file))


def _read_csv(file: Path, choose: Choose) -> list[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(_read_text(file), newline=""), strict=True)
    try:
        records = list(reader)
    except csv.Error as error:
        raise UserError(f"{file} line {reader.line_num} is not CSV: {error}") from error
    names = list(reader.fieldnames or ())
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{file} names the column {twice} twice; found {', '.join(names)}")
    for i, record in enumerate(records):
        if None in record:
            raise UserError(f"{file} row {i} has more fields than the header names")
    return _choose(records, choose, str(file))


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text: {error}") from error


_READERS = {".parquet": _read_parquet, ".jsonl": _read_json_lines, ".json": _read_json_lines, ".csv": _read_csv}


def _choose(records: Sequence[Row], choose: Choose, where: str) -> list[dict[str, Any]]:
    if not records:
        return []
    columns = choose(list(dict.fromkeys(name for record in records for name in record)), where)
    return [{name: record.get(name) for name in columns} for record in records]


def _load_from_hub(name: str, subset: str, revision: str) -> Data:
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(SUFFIXES):
        raise UserError(f"there is no file or directory {name}")
    try:
        import datasets  # pyright: ignore[reportMissingImports] -- the extra `hub`
    except ImportError as error:
        raise UserError(
            f"{name} is no file here; to load it from the Hugging Face hub, install the datasets package: "
            "pip install 'spo-cli[hub]'"
        ) from error
    try:
        loaded: Mapping[str, Any] = datasets.load_dataset(name, subset or None, revision=revision or None)  # type: ignore[assignment]
    except (OSError, ValueError, RuntimeError) as error:  # hub, configuration and network errors derive from these
        raise UserError(
            f"data {name} is neither a file here nor to be had from the Hugging Face hub: {first_line(error)}"
        ) from error
    splits: dict[Split, list[Row]] = {split: list(loaded[split]) for split in SPLITS if split in loaded}
    if not splits:
        raise UserError(f"{name} has none of the splits {', '.join(SPLITS)}; found {', '.join(loaded)}")
    content = json.dumps(splits, default=str)
    return Data(name, digest(content.encode()), splits)
