"""Test where trees branch: choices worked by hand, and properties over random responses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.maths.branch_points import most_doubtful, spread_cutpoints


def test_the_most_doubtful_tokens_by_hand():
    doubt = [9.0, 0.5, 2.0, 0.0, 2.0, 1.0]  # token 0 is another response to the prompt, token 3 is certain
    assert most_doubtful(doubt, 1).tolist() == [2]  # of 2 and 4, which are equal, the first
    assert most_doubtful(doubt, 3).tolist() == [2, 4, 5]
    assert most_doubtful(doubt, 9).tolist() == [1, 2, 4, 5]
    assert most_doubtful(doubt, 0).size == most_doubtful([], 2).size == most_doubtful([3.0], 2).size == 0


def test_cutpoints_are_divided_into_equal_shares_by_hand():
    is_cutpoint = np.isin(np.arange(12), [0, 2, 3, 5, 7, 8, 11])  # the candidates are 2 3 5 7 8 11
    assert spread_cutpoints(is_cutpoint, 1).tolist() == [7]  # 2 3 5 | 7 8 11
    assert spread_cutpoints(is_cutpoint, 2).tolist() == [5, 8]  # 2 3 | 5 7 | 8 11
    assert spread_cutpoints(is_cutpoint, 5).tolist() == [3, 5, 7, 8, 11]
    assert spread_cutpoints(is_cutpoint, 6).tolist() == [2, 3, 5, 7, 8, 11]
    assert spread_cutpoints(is_cutpoint, 0).size == spread_cutpoints([True], 3).size == 0


@pytest.mark.parametrize("doubt", [[0.5, -0.1], [0.5, float("nan")]])
def test_what_is_no_doubt_is_refused(doubt: list[float]):
    with pytest.raises(ValueError, match="at least 0"):
        most_doubtful(doubt, 1)


@given(st.lists(st.floats(0, 20), max_size=40), st.integers(0, 6))
def test_offsets_increase_lie_within_the_response_and_exceed_the_doubt_of_all_others(doubt: list[float], count: int):
    chosen = most_doubtful(doubt, count)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert all(0 < offset < len(doubt) for offset in chosen)
    others = [value for offset, value in enumerate(doubt) if offset and offset not in chosen]
    if chosen.size == count and count:
        assert min(doubt[offset] for offset in chosen) >= max(others, default=0)
    else:
        assert not any(others) or count == 0


@given(st.lists(st.booleans(), max_size=60), st.integers(0, 6))
def test_shares_of_cutpoints_differ_by_one_at_most(flags: list[bool], count: int):
    chosen = spread_cutpoints(flags, count)
    candidates = [offset for offset, flag in enumerate(flags) if flag and offset]
    assert set(chosen.tolist()) <= set(candidates)
    assert chosen.size == min(count, len(candidates))
    if len(candidates) > count > 0:
        borders = [0, *(candidates.index(offset) for offset in chosen), len(candidates)]
        assert np.ptp(np.diff(borders)) <= 1
