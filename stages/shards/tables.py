"""Owns the way between Arrow columns and the arrays of `stages.maths`: lists as ragged batches, names as numbers."""

# pyarrow.compute makes its functions when it is imported, out of the type checker's sight.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.maths.ragged import Ragged

_INT32_MAX = 2**31 - 1


def ragged(column: pa.ChunkedArray | pa.Array) -> Ragged:
    """A list column as a ragged batch; the values of a column in one chunk are a view, several chunks are joined.

    Raises:
      ValueError: a null list or a null within one, naming the row.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # no chunk at all, or more values than 32-bit offsets reach
        array = pa.concat_arrays(array.cast(pa.large_list(array.type.value_type)).chunks or [pa.array([], array.type)])
    row = null_row(array)
    if row is not None:
        raise ValueError(f"expected lists without nulls, found one in row {row}")
    offsets = array.offsets.to_numpy().astype(np.int64)
    # Under a slice the child holds the values of other rows too: keep ours alone, or their nulls would force a copy.
    values = array.values.slice(offsets[0], offsets[-1] - offsets[0])
    return Ragged(values.to_numpy(zero_copy_only=not pa.types.is_boolean(values.type)), offsets - offsets[0])


def list_array(batch: Ragged, type: pa.DataType) -> pa.ListArray:
    """A ragged batch as a list column of this value type (int32, float32 …); values of that very type are not copied.

    Raises:
      ValueError: more values than the 32-bit offsets of a list column can reach: pass fewer rows at once.
    """
    if batch.flat.size > _INT32_MAX:
        raise ValueError(f"a list column holds at most {_INT32_MAX} values, got {batch.flat.size}: pass fewer rows")
    offsets = pa.array((batch.offsets - batch.offsets[0]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(batch.flat, type))


def encode_names(names: pa.ChunkedArray) -> np.ndarray:
    """Each distinct name of a column without nulls as a number from 0, in the order of first appearance: int64 [N]."""
    return names.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)


def rows_by_name(names: pa.ChunkedArray | pa.Array, among: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """The row of each name among others, −1 where it is null or not one of them: int64 [N]."""
    values = among.combine_chunks() if isinstance(among, pa.ChunkedArray) else among
    return pc.fill_null(pc.index_in(names, value_set=values, skip_nulls=True), -1).to_numpy().astype(np.int64)


def null_row(column: pa.ChunkedArray | pa.Array) -> int | None:
    """The first row that is null or is a list with a null inside; None where there is none."""
    if column.null_count:
        return pc.index(pc.is_null(column), True).as_py()
    if not pa.types.is_nested(column.type):
        return None
    flat = pc.list_flatten(column)
    if not flat.null_count:
        return None
    return pc.list_parent_indices(column)[pc.index(pc.is_null(flat), True).as_py()].as_py()
