"""Owns writing so that a crash at any moment leaves the old file or the new one, and errors that name the cure."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from stages.core import paths
from stages.core.errors import UserError
from stages.core.storage import fsync

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT}
_NOT_A_DIRECTORY = {errno.ENOTDIR, errno.EEXIST}
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a full disk, a missing permission or a file in the way into a `UserError` about `path`."""
    try:
        with paths.store_errors(path):
            yield
    except OSError as error:
        if error.errno in _FULL:
            raise UserError(
                f"no room to write {path} ({os.strerror(error.errno)}): what was committed is kept; make room and run "
                f"the same command again"
            ) from error
        if error.errno in _FORBIDDEN:
            raise UserError(f"cannot write {path}: {os.strerror(error.errno)}") from error
        if error.errno in _NOT_A_DIRECTORY:
            raise UserError(f"cannot write {path}: a file lies where a directory should be") from error
        raise


@contextmanager
def replacing(target: Path, temporary: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `target` at the end, complete and on disk, or not at all.

    Args:
      temporary: where it grows; what is for an object store grows on this machine, under `TMPDIR`.
    """
    if not paths.is_local(target):
        with tempfile.TemporaryFile(buffering=1 << 20) as file:
            yield cast("BinaryIO", file)
            file.flush()
            paths.upload(cast("BinaryIO", file), target)
        return
    try:
        with temporary.open("wb", buffering=1 << 20) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    fsync(target.parent)


def write_parquet(file: BinaryIO, tables: Iterable[pa.Table], schema: pa.Schema, row_group: int) -> int:
    """Writes tables as one Parquet file whose bytes depend on the rows alone, not on how they come.

    Returns the number of rows.

    Args:
      tables: of this schema (metadata aside).
      schema: with the file's metadata.
      row_group: rows per row group.
    """
    # Dictionaries pay for strings and small numbers; of log-probabilities and values hardly two are equal.
    dictionary = [_leaf(field) for field in schema if not pa.types.is_floating(_value_type(field))]
    rows = 0
    with pq.ParquetWriter(
        file,
        schema,
        compression="zstd",
        use_dictionary=dictionary,  # pyright: ignore[reportArgumentType] -- takes column paths too
        write_page_checksum=True,
    ) as writer:
        for group in _regroup(tables, row_group):
            writer.write_table(pa.table(group.columns, schema=schema), row_group_size=row_group)
            rows += group.num_rows
    return rows


@contextmanager
def locked(directory: Path) -> Iterator[bool]:
    """Holds `directory`, made if need be, for this process alone.

    Yields:
      False where the file system has no locks, so that nothing is held. Object stores have none.

    Raises:
      UserError: another process holds it.
    """
    if not paths.is_local(directory):
        yield False
        return
    handle, held = _take_lock(directory)
    try:
        yield held
    finally:
        os.close(handle)


@contextmanager
def locked_chunks(directory: Path) -> Iterator[bool]:
    """`locked`, and at the end a directory without a chunk is removed; in a store, nothing is left of it by then."""
    if not paths.is_local(directory):
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
            directory.rmdir()  # once more: NFS keeps a removed file in it until the file is closed
        with suppress(OSError):
            directory.parent.rmdir()  # nothing was written


def _take_lock(directory: Path) -> tuple[int, bool]:
    path = directory / "lock"
    for attempts_left in reversed(range(100)):
        try:
            directory.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            if not attempts_left:
                raise
            continue  # the last holder removed the directory just now
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(handle, 200).decode(errors="replace")
            os.close(handle)
            raise UserError(f"another process ({holder}) is working in {directory}: wait for it, or end it") from error
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return handle, False
            os.close(handle)
            raise
        if _is_still(path, handle):
            with suppress(OSError):  # a full disk: who holds it is told as a courtesy
                os.truncate(handle, 0)
                os.write(handle, f"{os.uname().nodename}, process {os.getpid()}".encode())
            return handle, True
        os.close(handle)  # the last holder removed it just now
    raise UserError(f"could not get hold of {directory}: other processes keep taking it")


def _is_still(path: Path, handle: int) -> bool:
    """Whether the open file is the one at `path`, and not one that its last holder has removed."""
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(handle))
    return False


def _regroup(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """The same rows in tables of `size` rows (the last may be shorter), each in one contiguous chunk."""
    pending: list[pa.Table] = []
    rows = 0
    for table in tables:
        pending.append(table)
        rows += table.num_rows
        while rows >= size:
            whole = pa.concat_tables(pending)
            yield whole.slice(0, size).combine_chunks()
            pending, rows = [whole.slice(size)], rows - size
    if rows:
        yield pa.concat_tables(pending).combine_chunks()


def _value_type(field: pa.Field) -> pa.DataType:
    return field.type.value_type if pa.types.is_list(field.type) else field.type


def _leaf(field: pa.Field) -> str:
    """The column's path as Parquet names it."""
    return f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name
