"""Compute digests of files, and write files durably and atomically."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, cast

from stages.core.paths import AnyPath
from stages.core.store import StorePath, upload

_DIGEST_BYTES = 16  # 128 bits: accidental collisions are out of the question


def digest(content: bytes) -> str:
    """Return the BLAKE2b digest of some bytes: 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()


def file_digest(path: AnyPath) -> str:
    """Return the `digest` of a file's bytes, cached while its size and modification time stay the same.

    Every stage of an iteration needs the digest of the model, whose weights take seconds to read.
    """
    status = path.stat()
    return _digest_of_file(path.resolve(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _digest_of_file(path: AnyPath, size: int, modified: int) -> str:
    del size, modified  # part of the cache key only
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
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    fsync(target.parent)  # makes the rename itself durable
