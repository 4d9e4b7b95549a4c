"""Ragged arrays: rows are returned unchanged, as views."""

import numpy as np
import pytest

from stages.maths.ragged import Ragged, offsets_of


def test_rows_of_unequal_length_are_returned_unchanged():
    ragged = Ragged.of([[1, 2], [], [3]], np.int32)
    assert [row.tolist() for row in ragged] == [[1, 2], [], [3]]
    assert len(ragged) == 3
    assert ragged.lengths.tolist() == [2, 0, 1]
    assert ragged[-1].tolist() == [3]
    assert ragged.values.dtype == np.int32


def test_no_rows_and_rows_without_values():
    assert len(Ragged.of([], np.int32)) == 0
    assert Ragged.of([[], []], np.float32).lengths.tolist() == [0, 0]


def test_a_row_is_a_view():
    ragged = Ragged.of([[1, 2], [3]], np.int64)
    assert np.shares_memory(ragged[1], ragged.values)


def test_flat_is_the_range_between_the_first_and_last_offset():
    ragged = Ragged(np.arange(10), np.array([2, 5, 6]))
    assert ragged.flat.tolist() == [2, 3, 4, 5]
    assert ragged[0].tolist() == [2, 3, 4]


@pytest.mark.parametrize("offsets", [[], [0, 2, 1], [-1, 2], [0, 4]])
def test_invalid_offsets_are_refused(offsets):
    with pytest.raises(ValueError, match="offsets"):
        Ragged(np.arange(3), np.array(offsets, np.int64))


@pytest.mark.parametrize("index", [2, -3])
def test_an_index_out_of_range_is_refused(index):
    with pytest.raises(IndexError, match="of 2"):
        Ragged.of([[1], [2]], np.int64)[index]


def test_offsets_of_lengths():
    assert offsets_of([2, 0, 3]).tolist() == [0, 2, 2, 5]
    assert offsets_of([]).tolist() == [0]
