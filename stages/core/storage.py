"""What every room that keeps files needs: digests of their bytes, and a way to be sure that they are on the disk."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path

_DIGEST_BYTES = 16


def digest(content: bytes) -> str:
    """32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()


def file_digest(path: Path) -> str:
    """`digest` of a file's bytes, remembered while its size and time stand: an iteration asks for it in every stage."""
    status = path.stat()
    return _digest_of_file(path.resolve(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _digest_of_file(path: Path, size: int, modified: int) -> str:
    del size, modified  # in the cache's key
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_DIGEST_BYTES)).hexdigest()


def fsync(path: Path) -> None:
    """Makes a file's bytes, or the renames and removals in a directory, survive a power loss."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a small file that is there complete or not at all, in the place of one that was there."""
    beside = path.with_name(f".{path.name}")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    fsync(path.parent)
