"""Read one Parquet file: its footer, lineage and columns; define the errors of a corrupt or foreign file."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.errors import IncompleteInput, StoreUnreachable, UserError
from stages.core.parquet import read_table
from stages.core.paths import AnyPath
from stages.core.store import StorePath, store_errors
from stages.shards import checksums
from stages.shards.lineage import FOOTER_KEY, Lineage
from stages.shards.schemas import Schema

_SIGNS = (checksums.ROWS_KEY, checksums.SEAL_KEY, b'"schema_version":')
"""What every footer of spo contains: one bit that is flipped in a key leaves the others."""


def read_footer(path: AnyPath, schema: Schema | None = None) -> pq.FileMetaData:
    """Return the footer of a Parquet file; the checksum of a footer with a lineage is verified.

    Args:
      schema: the schema of the file, for the error message; None if it is not known yet.

    Raises:
      IncompleteInput: the file is truncated, or was edited or damaged since `spo` wrote it.
      UserError: the file is not Parquet.
      StoreUnreachable: this user has no permission to read the file, or the store does not respond.
    """
    try:
        with store_errors(path), path.open("rb") as file:
            tail = checksums.read_footer_bytes(file)
        footer = pq.read_metadata(pa.BufferReader(b"PAR1" + tail))
        _ = footer.schema.to_arrow_schema()  # decodes all names
    except PermissionError as error:
        raise StoreUnreachable(
            f"cannot read {path}: this user has no permission. Check the permissions of the file"
        ) from error
    except FileNotFoundError:  # removed by another process, or renamed a moment ago and seen late: not damaged
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        with store_errors(path), path.open("rb") as file:
            start = file.read(4)
        # A truncated Parquet file starts with "PAR1", or with zeros where the disk never received the bytes.
        if not b"PAR1".startswith(start.rstrip(b"\0")):
            raise UserError(f"{path} is not a Parquet file (it begins with {start!r})") from error
        raise corrupt_file(path, schema, "it has no complete footer") from error
    metadata = footer.metadata or {}
    # The bytes are searched, too: damage can hide a key, or the whole metadata.
    is_ours = FOOTER_KEY in metadata or any(sign in tail for sign in _SIGNS)
    if is_ours and not (FOOTER_KEY in metadata and checksums.is_sealed(tail, metadata)):
        raise edited_file(path, schema, "its footer does not fit its checksum")
    return footer


def lineage_of(footer: pq.FileMetaData, path: AnyPath) -> Lineage | None:
    """Return the lineage in a footer; None if there is none.

    Raises:
      UserError: another version of spo wrote the lineage.
    """
    text = (footer.metadata or {}).get(FOOTER_KEY)
    try:
        return Lineage.from_json(text) if text is not None else None
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def read_columns(path: AnyPath, columns: list[str] | None, schema: Schema) -> pa.Table:
    """Return the named columns (None: all) of a file in the types that they have there.

    The checksums of pages are verified, and those of the columns if `spo` wrote the file.

    Raises:
      IncompleteInput: the file is truncated or corrupt, or its rows are not those that its footer was written for.
    """
    try:
        with store_errors(path), _open(path) as file:
            metadata = file.metadata.metadata or {}
            table = read_table(path, file, columns, trusted=checksums.ROWS_KEY in metadata)
    except (UserError, MemoryError):  # they are a ValueError and, from pyarrow, an ArrowException
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise corrupt_file(path, schema, str(error)) from error
    if checksums.ROWS_KEY in metadata and (changed := checksums.changed_columns(table, metadata)):
        raise edited_file(path, schema, f"the rows of {', '.join(changed)} are not those that its footer describes")
    return table


def _open(path: AnyPath) -> pq.ParquetFile:
    """Open the file. From an object store only the byte ranges that are read are fetched, neighbors in one request."""
    if isinstance(path, StorePath):
        return pq.ParquetFile(path.key, filesystem=path.filesystem, pre_buffer=True, page_checksum_verification=True)
    return pq.ParquetFile(path, page_checksum_verification=True)


def corrupt_file(path: AnyPath, schema: Schema | None, detail: str) -> IncompleteInput:
    """Return the error for a truncated or corrupt file."""
    command = f"`spo {schema.stage}`" if schema else "the stage that writes it"
    return IncompleteInput(
        f"{path} is truncated or corrupt ({' '.join(detail.split())}): delete it and rerun {command}, or copy it again"
    )


def edited_file(path: AnyPath, schema: Schema | None, detail: str) -> IncompleteInput:
    """Return the error for a file that another tool wrote again with our footer, or that was damaged."""
    command = f"`spo {schema.stage}`" if schema else "the stage that writes it"
    return IncompleteInput(
        f"{path} was edited or damaged since it was written: {detail}. Delete it and rerun {command}, or copy it "
        "again; to use edited rows as foreign data, remove the footer (pyarrow: table.replace_schema_metadata())"
    )
