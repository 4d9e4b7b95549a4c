"""Allocation of rollouts: worked by hand, and limits that hold for all inputs."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages.maths.allocation import additional_rollouts, grant_rollouts, split_in_proportion


def test_states_with_wide_intervals_double_their_rollouts_up_to_the_maximum():
    # widths at 95 %: 0.49 (4 agree), 0.19 (16 agree), 0.60 (half of 8), 0.33 (half of 32)
    more, width = additional_rollouts([1, 1, 0.5, 0.5], [4, 16, 8, 32], 32, 0.2, 0.95)
    assert more.tolist() == [4, 0, 8, 0]
    assert (width > 0.2).tolist() == [True, False, True, True]
    assert additional_rollouts([0.5], [20], 32, 0.2, 0.95)[0].tolist() == [12]


def test_the_most_urgent_states_are_granted_first():
    granted = grant_rollouts(
        np.array([4, 4, 4, 8]), np.array([0.3, 0.5, 0.3, 0.1]), np.array([0, 0, 0, 1]), np.array([7, 100])
    )
    assert granted.tolist() == [3, 4, 0, 8]


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 1), st.integers(0, 2)), max_size=12), st.data())
def test_grants_stay_within_request_and_budget(states, data):
    requested, group = (np.array([state[i] for state in states], np.int64) for i in (0, 2))
    urgency = np.array([state[1] for state in states], np.float64)
    remaining = np.array([data.draw(st.integers(0, 30)) for _ in range(3)])
    granted = grant_rollouts(requested, urgency, group, remaining)
    assert np.all((granted >= 0) & (granted <= requested))
    for number in range(3):
        assert granted[group == number].sum() == min(remaining[number], requested[group == number].sum())


@given(st.integers(0, 10_000), st.lists(st.integers(0, 50), min_size=1, max_size=12))
def test_integer_shares_are_at_least_the_exact_share_rounded_down(total, weights):
    found = split_in_proportion(total, np.array(weights))
    if not sum(weights):
        assert not found.any()
        return
    assert found.sum() == total
    assert all(share >= total * weight // sum(weights) for share, weight in zip(found, weights, strict=True))
