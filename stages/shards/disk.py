"""Reproducible Parquet bytes, locks, and one-line errors for disks."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.errors import UserError
from stages.core.paths import AnyPath
from stages.core.store import StorePath, store_errors
from stages.shards.checksums import RowsDigest, seal

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT}
_NOT_A_DIRECTORY = {errno.ENOTDIR, errno.EEXIST}
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}


@contextmanager
def disk_errors(path: AnyPath) -> Iterator[None]:
    """Convert a full disk, a missing permission or a file in place of a directory into a `UserError` about `path`."""
    try:
        with store_errors(path):
            yield
    except OSError as error:
        if error.errno in _FULL:
            raise UserError(
                f"no space left to write {path} ({os.strerror(error.errno)}): committed work is kept. Free some space "
                "and rerun the command"
            ) from error
        if error.errno in _FORBIDDEN:
            raise UserError(f"cannot write {path}: {os.strerror(error.errno)}") from error
        if error.errno in _NOT_A_DIRECTORY:
            raise UserError(f"cannot write {path}: expected a directory, found a file in its path") from error
        raise


def write_parquet(file: BinaryIO, tables: Iterable[pa.Table], schema: pa.Schema, row_group: int) -> int:
    """Write tables as one Parquet file with the checksums of `stages.shards.checksums`; return the number of rows.

    The bytes depend on the rows and the schema, not on how the rows are divided into tables.

    Args:
      file: an empty file, open for writing and reading.
      tables: tables of this schema (metadata aside).
      schema: the schema, with the metadata of the file.
      row_group: rows per row group.
    """
    # Dictionary encoding saves space for strings and small integers, but not for floats: they rarely repeat.
    dictionary = [_parquet_path(field) for field in schema if not pa.types.is_floating(_value_type(field))]
    rows, digest = 0, RowsDigest(schema)
    with pq.ParquetWriter(
        file,
        schema,
        compression="zstd",
        use_dictionary=dictionary,  # pyright: ignore[reportArgumentType] -- accepts column paths, too
        write_page_checksum=True,
    ) as writer:
        for group in _regroup(tables, row_group):
            writer.write_table(pa.table(group.columns, schema=schema), row_group_size=row_group)
            digest.update(group)
            rows += group.num_rows
        writer.add_key_value_metadata(digest.metadata())
    seal(file)
    return rows


@contextmanager
def locked(directory: AnyPath) -> Iterator[bool]:
    """Lock `directory` for this process; create it if it does not exist.

    Yields:
      False if the file system or object store has no locks; then nothing is locked.

    Raises:
      UserError: another process holds the lock.
    """
    if isinstance(directory, StorePath):
        yield False
        return
    handle, held = _take_lock(directory)
    try:
        yield held
    finally:
        os.close(handle)


@contextmanager
def locked_chunks(directory: AnyPath) -> Iterator[bool]:
    """Lock the directory of a part's chunks (`locked`); remove it at the end if it holds no chunk."""
    if isinstance(directory, StorePath):
        yield False
        return
    try:
        with locked(directory) as held:
            try:
                yield held
            finally:
                if not any(directory.glob("chunk-*")):
                    shutil.rmtree(directory, ignore_errors=True)
    finally:
        with suppress(OSError):
            directory.rmdir()  # again: NFS keeps a removed file in the directory until the file is closed
        with suppress(OSError):
            directory.parent.rmdir()  # only an artefact directory without any file


def _take_lock(directory: Path) -> tuple[int, bool]:
    path = directory / "lock"
    for attempts_left in reversed(range(100)):
        try:
            directory.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            if not attempts_left:
                raise
            continue  # the previous holder removed the directory between mkdir and open
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(handle, 200).decode(errors="replace")
            os.close(handle)
            raise UserError(
                f"another process ({holder}) is working in {directory}: wait until it ends, or stop it"
            ) from error
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return handle, False
            os.close(handle)
            raise
        if _is_open_file_at(path, handle):
            with suppress(OSError):  # a full disk: the name of the holder only serves error messages
                os.truncate(handle, 0)
                os.write(handle, f"{os.uname().nodename}, process {os.getpid()}".encode())
            return handle, True
        os.close(handle)  # the previous holder removed the file between open and flock
    raise UserError(f"could not lock {directory}: other processes keep locking and removing it. Rerun the command")


def _is_open_file_at(path: Path, handle: int) -> bool:
    """Return whether the open file is still the one at `path`; False if its previous holder removed it."""
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(handle))
    return False


def _regroup(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """Yield the same rows in contiguous tables of `size` rows; the last may have fewer."""
    pending: list[pa.Table] = []
    rows = 0
    for table in tables:
        pending.append(table)
        rows += table.num_rows
        while rows >= size:
            joined = pa.concat_tables(pending)
            yield joined.slice(0, size).combine_chunks()
            pending, rows = [joined.slice(size)], rows - size
    if rows:
        yield pa.concat_tables(pending).combine_chunks()


def _value_type(field: pa.Field) -> pa.DataType:
    return field.type.value_type if pa.types.is_list(field.type) else field.type


def _parquet_path(field: pa.Field) -> str:
    """Return the path of the column's values within a Parquet file."""
    return f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name
