"""Arrow list columns and ragged batches convert without a copy; names are numbered by first appearance."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.maths.ragged import Ragged
from stages.shards.tables import encode_names, list_array, ragged

LISTS = st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5), max_size=12)
IDS = pa.list_(pa.int32())


def rows(batch: Ragged) -> list[list[int]]:
    return [row.tolist() for row in batch]


@given(LISTS, st.integers(0, 12), st.integers(0, 12), st.integers(1, 4))
def test_a_slice_of_any_chunks_has_the_rows_of_the_slice(lists: list[list[int]], start: int, length: int, size: int):
    array = pa.array(lists, IDS)
    expected = lists[start : start + length]
    assert rows(ragged(array.slice(start, length))) == expected
    pieces = pa.chunked_array([array.slice(i, size) for i in range(0, len(array), size)], IDS)
    assert rows(ragged(pieces.slice(start, length))) == expected


@given(LISTS)
def test_lists_survive_a_round_trip(lists: list[list[int]]):
    batch = Ragged.of(lists, np.int32)
    column = list_array(batch, pa.int32())
    assert column.type == IDS
    assert column.to_pylist() == lists
    assert rows(ragged(column)) == lists


def test_values_are_not_copied():
    column = pa.array([[1, 2], [3], [4, 5, 6]], IDS)
    batch = ragged(column.slice(1))
    address = column.values.buffers()[1].address
    assert batch.values.ctypes.data == address + 2 * 4
    back = list_array(batch, pa.int32())
    assert back.values.buffers()[1].address == address + 2 * 4
    assert back.to_pylist() == [[3], [4, 5, 6]]


def test_a_view_of_a_larger_batch_becomes_its_own_lists():
    batch = Ragged(np.arange(10, dtype=np.float32), np.array([3, 5, 9]))
    assert list_array(batch, pa.float32()).to_pylist() == [[3, 4], [5, 6, 7, 8]]


def test_large_and_empty_columns_are_converted():
    assert rows(ragged(pa.chunked_array([], IDS))) == []
    assert rows(ragged(pa.chunked_array([[[1], [2, 3]], [[]]], pa.large_list(pa.int32())))) == [[1], [2, 3], []]


@pytest.mark.parametrize(("lists", "row"), [([[1], None, [2]], 1), ([[1], [], [2, None]], 2)])
def test_nulls_are_refused_with_their_row(lists: list[list[int | None] | None], row: int):
    array = pa.array(lists, IDS)
    with pytest.raises(ValueError, match=f"row {row}"):
        ragged(array)
    with pytest.raises(ValueError, match=f"row {row}"):
        ragged(pa.chunked_array([array.slice(i, 1) for i in range(3)]))


def test_a_null_outside_the_slice_is_ignored():
    array = pa.array([[1], None, [2], [None], [3, 4]], IDS)
    assert rows(ragged(array.slice(2, 1))) == [[2]]
    assert rows(ragged(array.slice(4, 1))) == [[3, 4]]


def test_names_are_numbered_by_first_appearance_across_chunks():
    assert encode_names(pa.chunked_array([["b", "a"], ["b", "c"]])).tolist() == [0, 1, 0, 2]
    assert encode_names(pa.chunked_array([], pa.string())).tolist() == []
