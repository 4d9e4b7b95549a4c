"""Owns reading one Parquet file: its footer, its columns; whole, torn or no Parquet at all."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.errors import IncompleteInput, StoreUnreachable, UserError
from stages.core.paths import StorePath, store_errors
from stages.shards.lineage import FOOTER_KEY, Lineage
from stages.shards.schemas import Schema


def read_footer(path: Path, schema: Schema | None = None) -> pq.FileMetaData:
    """The footer of a Parquet file.

    Raises:
      IncompleteInput: a torn file. UserError: one that is not Parquet. Unreachable: one that this user may not read, or
        that a store does not give.
    """
    try:
        with store_errors(path):
            return _open(path).metadata
    except PermissionError as error:
        raise StoreUnreachable(f"{path} may not be read by this user") from error
    except (pa.ArrowException, OSError) as error:
        with store_errors(path), path.open("rb") as file:
            start = file.read(4)
        if not b"PAR1".startswith(start.rstrip(b"\0")):
            raise UserError(f"{path} is not a Parquet file (it begins with {start!r})") from error
        raise torn(path, schema, "it ends too early") from error


def lineage_of(footer: pq.FileMetaData, path: Path) -> Lineage | None:
    """What a footer says of the part; None where it says nothing.

    Raises:
      UserError: a lineage of another version of spo.
    """
    text = (footer.metadata or {}).get(FOOTER_KEY)
    try:
        return Lineage.from_json(text) if text is not None else None
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def read_columns(path: Path, columns: list[str] | None, schema: Schema) -> pa.Table:
    """These columns (None: all) of a file, as they are there; page checksums are verified.

    Raises:
      IncompleteInput: a torn or corrupt file.
    """
    try:
        with store_errors(path), _open(path) as file:
            return file.read(columns)
    except (pa.ArrowException, OSError) as error:
        raise torn(path, schema, str(error)) from error


def _open(path: Path) -> pq.ParquetFile:
    """The file; of an object only the byte ranges that are read travel, near ones together."""
    if isinstance(path, StorePath):
        return pq.ParquetFile(path.key, filesystem=path.filesystem, pre_buffer=True, page_checksum_verification=True)
    return pq.ParquetFile(path, page_checksum_verification=True)


def torn(path: Path, schema: Schema | None, detail: str) -> IncompleteInput:
    """The error for a file that is not whole."""
    again = f"`spo {schema.stage}`" if schema else "the stage that made it"
    return IncompleteInput(f"{path} is torn or corrupt ({detail}): delete it and run {again} again, or copy it anew")
