"""The soft overlong penalty: worked by hand, and as verl computes it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.maths.length_penalty import soft_overlong_penalty


def test_the_penalty_by_hand():
    assert soft_overlong_penalty([0, 6, 7, 8, 9, 10], 10, 4).tolist() == [0, 0, -0.25, -0.5, -0.75, -1]
    assert soft_overlong_penalty([5, 10], 10, 10, 2.0).tolist() == [-1, -2]
    assert soft_overlong_penalty([], 10, 4).size == 0


@given(st.integers(1, 50), st.integers(1, 50), st.floats(0, 3), st.integers(0, 50))
def test_it_is_the_penalty_of_the_released_reward_manager(most: int, buffer: int, weight: float, length: int):
    """verl's DAPO reward manager: min(−(length − expected) / buffer · factor, 0), expected = maximum − buffer."""
    most, length = max(most, buffer), min(length, max(most, buffer))
    expected = min(-(length - (most - buffer)) / buffer * weight, 0)
    np.testing.assert_allclose(soft_overlong_penalty([length], most, buffer, weight), [expected])


@pytest.mark.parametrize(("lengths", "buffer"), [([5], 0), ([5], 11), ([11], 4)])
def test_parameters_out_of_range_are_refused(lengths: list[int], buffer: int):
    with pytest.raises(ValueError, match=r"expected|more than the maximum"):
        soft_overlong_penalty(lengths, 10, buffer)
