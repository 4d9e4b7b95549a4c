"""Compute digests of files, and write files durably and atomically."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, cast

from stages.core.paths import AnyPath
from stages.core.store import StorePath, upload

_CLOCK_TICK_NS = 3 * 10**9
"""Longer than the resolution of any file system's timestamps: 2 s on FAT, 1 s in object stores and on old NFS."""
_DIGEST_BYTES = 16  # 128 bits: accidental collisions are out of the question


def digest(content: bytes) -> str:
    """Return the BLAKE2b digest of some bytes: 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()


def file_digest(path: AnyPath) -> str:
    """Return the `digest` of a file's bytes, cached while its inode, size and times stay the same.

    Every stage of an iteration needs the digest of the model, whose weights take seconds to read. A file written within
    the last seconds is read again at each call: it can be rewritten within one tick of the file system's clock and then
    has the same size and times with other bytes.
    """
    status = path.stat()
    times = status.st_mtime_ns, status.st_ctime_ns
    if time.time_ns() - max(times) < _CLOCK_TICK_NS:
        return _read_digest(path)
    return _cached_digest(path.resolve(), (status.st_ino, status.st_size, *times))


@lru_cache(maxsize=4096)
def _cached_digest(path: AnyPath, state: tuple[int, ...]) -> str:
    del state  # part of the cache key only
    return _read_digest(path)


def _read_digest(path: AnyPath) -> str:
    with path.open("rb") as file:
        found = hashlib.file_digest(cast("BufferedReader", file), lambda: hashlib.blake2b(digest_size=_DIGEST_BYTES))
    return found.hexdigest()


def fsync(path: Path) -> None:
    """Flush a file, or the renames and removals in a directory, to the disk, so that they survive a power loss."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: AnyPath, content: bytes) -> None:
    """Write a small file, replacing an existing one; a reader sees the old content or the new, never a mixture."""
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(target: AnyPath, temporary: AnyPath | None = None) -> Iterator[BinaryIO]:
    """Yield a file that replaces `target` when the block ends without an error.

    The content is on disk before the rename. A crash at any moment leaves the old file or the complete new one.

    Args:
      temporary: where the content is written first, on the file system of `target`. Default: a hidden file next to it.
        A file for an object store is written under `TMPDIR` and then uploaded.
    """
    if isinstance(target, StorePath):
        with tempfile.TemporaryFile(buffering=1 << 20) as file:
            yield cast("BinaryIO", file)
            file.flush()
            upload(cast("BinaryIO", file), target)
        return
    temporary = temporary or target.with_name(f".{target.name}.tmp")
    assert isinstance(temporary, Path), "expected the temporary file on the file system of the target"
    try:
        with temporary.open("w+b", buffering=1 << 20) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:  # after an interrupt, too, no temporary file stays
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    fsync(target.parent)  # makes the rename itself durable
