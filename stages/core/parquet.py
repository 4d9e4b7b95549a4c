"""Read the columns of a Parquet file, unless a small file would fill the memory."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.errors import UserError
from stages.core.paths import AnyPath

_MOST_EXPANSION, _SURELY_HARMLESS = 1000, 1 << 30
"""Bytes of values per byte of a file, and bytes of values, up to which a file is read."""
_BATCH_ROWS = 256
"""Rows of a file of unknown size in memory that are read at once."""


def read_table(path: AnyPath, file: pq.ParquetFile, columns: list[str] | None, *, trusted: bool = False) -> pa.Table:
    """Return the named columns (None: all) of an open file in the types that they have there.

    Args:
      trusted: `spo` wrote the file, so its values are not counted while they are read.

    Raises:
      UserError: a small file would fill the memory.
      pyarrow.ArrowException, OSError, ValueError: the file is truncated or corrupt.
    """
    size = path.stat().st_size
    limit = max(_SURELY_HARMLESS, _MOST_EXPANSION * size)
    bomb = UserError(
        f"{path} has {file.metadata.num_rows:,} rows in {size:,} bytes; expected at most {_MOST_EXPANSION} bytes of "
        "values per byte: it would fill the memory"
    )
    fewest, most = _value_bytes(file.metadata, columns)
    if fewest > limit:
        raise bomb
    if most <= limit or trusted:
        return file.read(columns)
    batches, read = list[pa.RecordBatch](), 0
    for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
        batches.append(batch)
        read += batch.nbytes
        if read > limit:
            raise bomb
    return pa.Table.from_batches(batches) if batches else file.read(columns)


def _value_bytes(footer: pq.FileMetaData, columns: list[str] | None) -> tuple[int, int]:
    """Return bounds on the bytes that the named columns take in memory.

    A column of texts may repeat one long text for each of its values: all that it holds is then in its dictionary.
    """
    fewest = most = 0
    for group in range(footer.num_row_groups):
        for index in range(footer.num_columns):
            chunk = footer.row_group(group).column(index)
            if columns is None or chunk.path_in_schema.partition(".")[0] in columns:
                fewest += chunk.num_values * 8
                longest = chunk.total_uncompressed_size if chunk.physical_type == "BYTE_ARRAY" else 8
                most += chunk.num_values * max(longest, 8)
    return fewest, most
