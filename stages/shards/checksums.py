"""Checksums in the footer of a part: of the rows of each column, and of the footer itself.

    spo.rows     {column: digest}, over the values alone: the same for any division into row groups and pages
    spo.footer   digest of the footer's bytes, in which the digest itself is replaced by zeros

Another tool that reads a part and writes changed rows often copies our lineage along. These checksums then no longer
match, so the rows cannot pass as those that the lineage describes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import IO, BinaryIO

import numpy as np
import pyarrow as pa
import xxhash

from stages.core.storage import digest

ROWS_KEY, SEAL_KEY = b"spo.rows", b"spo.footer"
_UNSEALED = b"0" * 32
_TAIL = 8  # the length of the footer in 4 bytes, and the magic number
_MAGIC = b"PAR1"
_FIRST_READ = 1 << 16  # bytes from the end of a file that mostly hold the whole footer


class _Values:
    """The digest of a sequence of values that arrives in arrays of any length."""

    def __init__(self) -> None:
        self._content, self._lengths, self._nulls = xxhash.xxh3_128(), xxhash.xxh3_128(), xxhash.xxh3_128()
        self._items: _Values | None = None
        self._count = 0

    def update(self, array: pa.Array) -> None:
        """Add the next values."""
        if array.null_count:
            self._nulls.update((np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False)) + self._count).data)
        self._count += len(array)
        if pa.types.is_nested(array.type):
            offsets = array.offsets.to_numpy()
            items = array.values.slice(offsets[0], offsets[-1] - offsets[0])
            self._lengths.update(np.diff(offsets).astype(np.int64).data)
            self._items = self._items or _Values()
            self._items.update(items)
        elif pa.types.is_string(array.type):
            _, offsets, content = array.buffers()
            bounds = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
            self._lengths.update(np.diff(bounds).astype(np.int64).data)
            if content is not None:
                self._content.update(memoryview(content)[bounds[0] : bounds[-1]])
        else:
            filled = array.fill_null(0) if array.null_count else array
            self._content.update(np.ascontiguousarray(filled.to_numpy(zero_copy_only=False)).view(np.uint8).data)

    def digest(self) -> bytes:
        """Return the digest of all values so far."""
        parts = [self._content.digest(), self._lengths.digest(), self._nulls.digest()]
        return digest(b"".join([*parts, self._items.digest() if self._items else b""])).encode()


class RowsDigest:
    """The digests of the columns of a table that arrives a few rows at a time."""

    def __init__(self, schema: pa.Schema) -> None:
        self._types = {field.name: field.type for field in schema}
        self._columns = {field.name: _Values() for field in schema}

    def update(self, table: pa.Table) -> None:
        """Add the next rows."""
        for name, values in self._columns.items():
            for array in table[name].chunks:
                if len(array):
                    values.update(array)

    def digests(self) -> dict[str, str]:
        """Return the digest of each column's type and values."""
        return {
            name: digest(_name_type(self._types[name]).encode() + values.digest())
            for name, values in self._columns.items()
        }

    def metadata(self) -> dict[str, str]:
        """Return the entries for a footer that `seal` then completes."""
        return {ROWS_KEY.decode(): json.dumps(self.digests()), SEAL_KEY.decode(): _UNSEALED.decode()}


def _name_type(type: pa.DataType) -> str:
    """Return the name of a type, without the name of a list's items, which Parquet changes."""
    return f"list of {_name_type(type.value_type)}" if pa.types.is_nested(type) else str(type)


def seal(file: BinaryIO) -> None:
    """Write the digest of the footer into the footer of a finished Parquet file that is open for reading, too."""
    file.flush()
    footer = read_footer_bytes(file)[: -len(_MAGIC)]
    start = footer.index(_UNSEALED, footer.rindex(SEAL_KEY))
    file.seek(-len(footer) - len(_MAGIC) + start, os.SEEK_END)
    file.write(digest(footer).encode())
    file.seek(0, os.SEEK_END)


def read_footer_bytes(file: IO[bytes]) -> bytes:
    """Return the end of a Parquet file from the first byte of its footer on.

    Raises:
      ValueError: the file does not end with a complete footer.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _FIRST_READ))
    tail = file.read()
    length = int.from_bytes(tail[-_TAIL:-4], "little") + _TAIL
    if not tail.endswith(_MAGIC) or length > size - len(_MAGIC):
        raise ValueError("it has no complete footer")
    if length > len(tail):
        file.seek(size - length)
        tail = file.read()
    return tail[-length:]


def is_sealed(tail: bytes, metadata: Mapping[bytes, bytes]) -> bool:
    """Return whether a footer is the one that `seal` completed.

    Args:
      tail: what `read_footer_bytes` returned.
      metadata: the key-value metadata in it.
    """
    found = metadata.get(SEAL_KEY, b"")
    footer = tail[: -len(_MAGIC)]
    start = footer.find(found, max(footer.rfind(SEAL_KEY), 0))
    if len(found) != len(_UNSEALED) or start < 0 or ROWS_KEY not in metadata:
        return False
    return digest(footer[:start] + _UNSEALED + footer[start + len(found) :]).encode() == found


def changed_columns(table: pa.Table, metadata: Mapping[bytes, bytes]) -> Iterable[str]:
    """Return the columns of a table whose values are not those that the footer of its file was written for."""
    recorded = json.loads(metadata[ROWS_KEY])
    found = RowsDigest(table.schema)
    found.update(table)
    return [name for name, value in found.digests().items() if recorded.get(name) != value]
