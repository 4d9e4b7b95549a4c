"""Values of states: means, standard deviations and the best of n attempts, worked by hand."""

import numpy as np
import pytest

from stages.maths.ragged import Ragged
from stages.maths.values import all_equal, best_of_n_values, group_std, monte_carlo_values

NAN = float("nan")


def test_monte_carlo_mean_std_and_count():
    values = monte_carlo_values(Ragged.of([[1, 0, 0, 1], [], [1], [0, 0]], np.float32))
    np.testing.assert_allclose(values.mean, [0.5, NAN, 1, 0])
    np.testing.assert_allclose(values.std, [np.sqrt(4 * 0.25 / 3), NAN, NAN, 0])
    assert values.rollouts.tolist() == [4, 0, 1, 2]


def test_groups_are_equal_if_all_their_values_are():
    assert all_equal(np.array([1.0, 0, 1, 0.5, 1]), np.array([0, 1, 0, 1, 2])).tolist() == [True, False, True]
    assert all_equal(np.empty(0), np.empty(0, np.int64)).tolist() == []


def test_unknown_rewards_are_neither_equal_nor_different():
    nan = float("nan")
    rewards, groups = np.array([1.0, nan, 0, nan, nan, 1]), np.array([0, 0, 1, 1, 2, 1])
    assert all_equal(rewards, groups).tolist() == [True, False, True], "a group without any known reward has no signal"
    np.testing.assert_allclose(group_std(rewards, groups), [nan, nan, *[np.sqrt(0.5)] * 2, nan, np.sqrt(0.5)])


@pytest.mark.parametrize("rewards", [[], [[]], [[], []]])
def test_states_without_rollouts_have_no_value(rewards):
    values = monte_carlo_values(Ragged.of(rewards, np.float32))
    assert np.isnan(values.mean).all()
    assert values.mean.size == len(rewards)


def test_a_view_of_rewards_with_states_without_rollouts():
    values = monte_carlo_values(Ragged(np.array([9.0, 1, 0, 9]), np.array([1, 1, 3, 3])))
    np.testing.assert_allclose(values.mean, [NAN, 0.5, NAN])


@pytest.mark.parametrize("bad", [NAN, np.inf])
def test_rewards_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        monte_carlo_values(Ragged.of([[1.0, bad]], np.float64))


def test_the_best_of_n_attempts():
    # At least one of two attempts with probability 1/4 succeeds: 1 − (3/4)²
    np.testing.assert_allclose(best_of_n_values([0, 0.25, 1], 2), [0, 7 / 16, 1])
    assert best_of_n_values([0.25], 1).tolist() == [0.25]
    with pytest.raises(ValueError, match="probabilities"):
        best_of_n_values([1.5], 2)


def test_group_std_by_hand():
    # 0.5 and 1 are 0.25 from their mean: std = sqrt(2 · 0.0625 / 1)
    found = group_std(np.array([0.5, 1, 7, 1]), np.array([4, 4, 9, 5]))
    np.testing.assert_allclose(found, [np.sqrt(0.125), np.sqrt(0.125), NAN, NAN])
