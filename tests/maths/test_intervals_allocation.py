"""Wilson's interval against published numbers, and rollouts that are shared out by it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.maths.allocation import additional_rollouts, grant_rollouts, split_in_proportion
from stages.maths.intervals import wilson, wilson_width


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_published_intervals(right, of, low, high):
    found = wilson(right / of, of)
    np.testing.assert_allclose(found, (low, high), atol=5e-5)


def test_agreement_leaves_a_width_that_more_outcomes_narrow():
    # All of n agree: z²/(n + z²), with z = 1.96
    np.testing.assert_allclose(wilson_width(1.0, [4, 16, 32]), 1.96**2 / (np.array([4, 16, 32]) + 1.96**2), atol=1e-4)
    assert wilson_width(0.3, 0) == 1.0


@given(st.floats(0, 1), st.integers(1, 10_000), st.floats(0.5, 0.999))
def test_an_interval_holds_its_mean_and_is_mirrored(mean, count, confidence):
    low, high = wilson(mean, count, confidence)
    assert 0 <= low <= mean + 1e-12
    assert mean - 1e-12 <= high <= 1
    np.testing.assert_allclose(wilson(1 - mean, count, confidence), (1 - high, 1 - low), atol=1e-9)


@pytest.mark.parametrize(("mean", "count", "confidence"), [(1.1, 3, 0.95), (0.5, 0, 0.95), (0.5, 3, 1.0)])
def test_what_is_no_mean_of_chances(mean, count, confidence):
    with pytest.raises(ValueError, match="from 0 to 1"):
        wilson(mean, count, confidence)


def test_wide_intervals_ask_for_as_many_again_up_to_the_most():
    # widths at 95 %: 0.49 (4 agree), 0.19 (16 agree), 0.60 (half of 8), 0.33 (half of 32)
    more, width = additional_rollouts([1, 1, 0.5, 0.5], [4, 16, 8, 32], 32, 0.2, 0.95)
    assert more.tolist() == [4, 0, 8, 0]
    assert (width > 0.2).tolist() == [True, False, True, True]
    assert additional_rollouts([0.5], [20], 32, 0.2, 0.95)[0].tolist() == [12]


def test_the_most_urgent_get_what_is_left_to_their_group():
    granted = grant_rollouts(
        np.array([4, 4, 4, 8]), np.array([0.3, 0.5, 0.3, 0.1]), np.array([0, 0, 0, 1]), np.array([7, 100])
    )
    assert granted.tolist() == [3, 4, 0, 8]


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 1), st.integers(0, 2)), max_size=12), st.data())
def test_grants_stay_within_what_is_wanted_and_left(states, data):
    wanted, group = (np.array([state[i] for state in states], np.int64) for i in (0, 2))
    urgency = np.array([state[1] for state in states], np.float64)
    left = np.array([data.draw(st.integers(0, 30)) for _ in range(3)])
    granted = grant_rollouts(wanted, urgency, group, left)
    assert np.all((granted >= 0) & (granted <= wanted))
    for number in range(3):
        assert granted[group == number].sum() == min(left[number], wanted[group == number].sum())


@given(st.integers(0, 10_000), st.lists(st.integers(0, 50), min_size=1, max_size=12))
def test_shares_are_whole_and_no_one_gets_less_than_due(total, weights):
    found = split_in_proportion(total, np.array(weights))
    if not sum(weights):
        assert not found.any()
        return
    assert found.sum() == total
    assert all(share >= total * weight // sum(weights) for share, weight in zip(found, weights, strict=True))
