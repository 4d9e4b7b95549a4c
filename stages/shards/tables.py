"""Convert between Arrow columns and the arrays of `stages.maths`: list columns ↔ ragged batches, names → numbers."""

# pyarrow.compute creates its functions at import time, which the type checker cannot see.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.maths.ragged import Ragged

_INT32_MAX = 2**31 - 1


def ragged(column: pa.ChunkedArray | pa.Array) -> Ragged:
    """Return a list column as a ragged batch: a view of the values of one Arrow chunk, a copy of several.

    Raises:
      ValueError: a list is null or contains a null; the message names the row.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # no chunk, or more values than 32-bit offsets can address
        array = pa.concat_arrays(array.cast(pa.large_list(array.type.value_type)).chunks or [pa.array([], array.type)])
    row = null_row(array)
    if row is not None:
        raise ValueError(f"expected lists without nulls, found a null in row {row}")
    offsets = array.offsets.to_numpy().astype(np.int64)
    # The child array of a slice also holds values of other rows. Their nulls would force a copy, so cut them off.
    values = array.values.slice(offsets[0], offsets[-1] - offsets[0])
    return Ragged(values.to_numpy(zero_copy_only=not pa.types.is_boolean(values.type)), offsets - offsets[0])


def list_array(batch: Ragged, type: pa.DataType) -> pa.ListArray:
    """Return a ragged batch as a list column of value type `type`; values that have this type are not copied.

    Raises:
      ValueError: there are more values than the 32-bit offsets of a list column can address.
    """
    if batch.flat.size > _INT32_MAX:
        raise ValueError(f"a list column holds at most {_INT32_MAX} values, got {batch.flat.size}: pass fewer rows")
    offsets = pa.array((batch.offsets - batch.offsets[0]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(batch.flat, type))


def encode_names(names: pa.ChunkedArray) -> np.ndarray:
    """Return a number from 0 for each name, equal for equal names, in order of first appearance: int64 [N].

    The column must not contain nulls.
    """
    return names.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)


def rows_by_name(names: pa.ChunkedArray | pa.Array, among: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Return the row of each name in `among`, −1 where the name is null or absent: int64 [N]."""
    values = among.combine_chunks() if isinstance(among, pa.ChunkedArray) else among
    return pc.fill_null(pc.index_in(names, value_set=values, skip_nulls=True), -1).to_numpy().astype(np.int64)


def null_row(column: pa.ChunkedArray | pa.Array) -> int | None:
    """Return the first row that is null or a list that contains a null; None if there is none."""
    if column.null_count:
        return pc.index(pc.is_null(column), True).as_py()
    if not pa.types.is_nested(column.type):
        return None
    flat = pc.list_flatten(column)
    if not flat.null_count:
        return None
    return pc.list_parent_indices(column)[pc.index(pc.is_null(flat), True).as_py()].as_py()
