"""Values and advantages: hand-worked numbers, telescoping, and reduction to the group methods."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.maths.advantages import chain_advantages, dr_grpo, grpo, rloo, states_to_estimate
from stages.maths.partition import (
    partition_by_cutpoints,
    partition_by_length,
    partition_by_token,
    partition_by_trajectory,
    segment_cutpoints,
)
from stages.maths.ragged import Ragged
from stages.maths.values import all_equal, best_of_n_values, monte_carlo_values

NAN = float("nan")


def flags(*responses: str) -> tuple[list[int], np.ndarray]:
    return [len(response) for response in responses], np.array([token == "x" for token in "".join(responses)], np.bool_)


# Values


def test_monte_carlo_mean_std_and_count():
    values = monte_carlo_values(Ragged.of([[1, 0, 0, 1], [], [1], [0, 0]], np.float32))
    np.testing.assert_allclose(values.mean, [0.5, NAN, 1, 0])
    np.testing.assert_allclose(values.std, [np.sqrt(4 * 0.25 / 3), NAN, NAN, 0])
    assert values.rollouts.tolist() == [4, 0, 1, 2]


def test_groups_are_equal_if_every_value_is():
    assert all_equal(np.array([1.0, 0, 1, 0.5, 1]), np.array([0, 1, 0, 1, 2])).tolist() == [True, False, True]
    assert all_equal(np.empty(0), np.empty(0, np.int64)).tolist() == []


@pytest.mark.parametrize("rewards", [[], [[]], [[], []]])
def test_no_rollouts_no_value(rewards):
    values = monte_carlo_values(Ragged.of(rewards, np.float32))
    assert np.isnan(values.mean).all()
    assert values.mean.size == len(rewards)


def test_a_slice_of_rewards_and_trailing_states_without_rollouts():
    values = monte_carlo_values(Ragged(np.array([9.0, 1, 0, 9]), np.array([1, 1, 3, 3])))
    np.testing.assert_allclose(values.mean, [NAN, 0.5, NAN])


@pytest.mark.parametrize("bad", [NAN, np.inf])
def test_a_reward_that_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        monte_carlo_values(Ragged.of([[1.0, bad]], np.float64))


def test_the_best_of_n_attempts():
    # One of two attempts at a chance of 1/4: 1 − (3/4)²
    np.testing.assert_allclose(best_of_n_values([0, 0.25, 1], 2), [0, 7 / 16, 1])
    assert best_of_n_values([0.25], 1).tolist() == [0.25]
    with pytest.raises(ValueError, match="probabilities"):
        best_of_n_values([1.5], 2)


# Which states


def test_the_stretch_before_the_first_cutpoint_is_not_estimated():
    lengths, is_cutpoint = flags("x.x", "..x", "...", "")
    segments = partition_by_cutpoints(lengths, is_cutpoint, 1)
    cutpoints = segment_cutpoints(segments, lengths, is_cutpoint)
    # x. | x      .. | x      ...      (empty)
    assert states_to_estimate(segments.start, cutpoints).tolist() == [True, True, False, True, False, False]


def test_other_partitions_estimate_every_start():
    assert states_to_estimate(partition_by_length([3, 4], 2).start, None).all()


def test_cutpoints_of_other_segments():
    with pytest.raises(ValueError, match="2 segments; got 1"):
        states_to_estimate(partition_by_length([4], 2).start, Ragged.of([[]], np.int32))


# Chain


def test_a_chain_by_hand():
    # Two segments with V 0.25 and 0.75, reward 1; one segment with V 0.5, reward 0.
    result = chain_advantages(partition_by_length([4, 2], 2), [0.25, 0.75, 0.5], [1, 0])
    assert result.value_start.tolist() == [0.25, 0.75, 0.5]
    assert result.value_end.tolist() == [0.75, 1, 0]
    assert result.advantage.tolist() == [0.5, 0.25, -0.5]


def test_an_unestimated_first_state_has_the_value_of_its_end():
    result = chain_advantages(partition_by_cutpoints(*flags("..x"), 1), [NAN, 0.25], [1])
    assert result.value_start.tolist() == [0.25, 0.25]
    assert result.value_end.tolist() == [0.25, 1]
    assert result.advantage.tolist() == [0, 0.75]


def test_without_a_cutpoint_the_value_is_the_reward_and_the_advantage_0():
    result = chain_advantages(partition_by_trajectory([3, 0]), [NAN, NAN], [1, -0.5])
    assert result.value_start.tolist() == result.value_end.tolist() == [1, -0.5]
    assert result.advantage.tolist() == [0, 0]


def test_no_trajectories():
    assert chain_advantages(partition_by_trajectory([]), [], []).advantage.size == 0


@pytest.mark.parametrize(
    ("values", "rewards", "found"),
    [
        ([0.5, NAN], [1.0], "first state"),
        ([0.5, np.inf], [1.0], "finite"),
        ([0.5, 0.5], [NAN], "finite"),
        ([0.5], [1.0], "2 segments"),
        ([0.5, 0.5], [1.0, 0.0], "1 trajectories"),
    ],
)
def test_values_that_do_not_fit(values, rewards, found):
    with pytest.raises(ValueError, match=found):
        chain_advantages(partition_by_length([4], 2), values, rewards)


finite = st.floats(-2, 2)


@given(st.lists(st.tuples(st.text("x.", max_size=10), finite), max_size=6), st.integers(1, 4), st.data())
def test_advantages_telescope_and_follow_their_trajectory(trajectories, interval, data):
    lengths, is_cutpoint = flags(*(response for response, _ in trajectories))
    rewards = [reward for _, reward in trajectories]
    segments = partition_by_cutpoints(lengths, is_cutpoint, interval)
    wanted = states_to_estimate(segments.start, segment_cutpoints(segments, lengths, is_cutpoint))
    drawn = np.array([data.draw(finite) if estimate else NAN for estimate in wanted], np.float64)
    advantage = chain_advantages(segments, drawn, rewards).advantage
    for i, reward in enumerate(rewards):
        own = segments.trajectory == i
        estimated = drawn[own & wanted]
        start = estimated[0] if estimated.size else reward
        np.testing.assert_allclose(advantage[own].sum(), reward - start, atol=1e-12)
        alone = chain_advantages(
            partition_by_cutpoints([lengths[i]], flags(trajectories[i][0])[1], interval), drawn[own], [reward]
        )
        assert np.array_equal(alone.advantage, advantage[own])
    assert np.all(advantage[~wanted] == 0)


# Groups

groups_of_rewards = st.lists(st.tuples(st.integers(0, 3), finite), min_size=1, max_size=20)


@given(groups_of_rewards)
def test_one_segment_with_the_others_mean_as_value_is_rloo(members):
    groups, rewards = np.array([g for g, _ in members]), np.array([r for _, r in members])
    others = np.zeros(rewards.size)
    for i, g in enumerate(groups):
        rest = rewards[(groups == g) & (np.arange(groups.size) != i)]
        others[i] = rest.mean() if rest.size else 0.0
    segments = partition_by_trajectory(np.full(rewards.size, 5))
    np.testing.assert_allclose(
        chain_advantages(segments, others, rewards).advantage, rloo(rewards, groups).advantage, atol=1e-12
    )


@given(groups_of_rewards)
def test_one_segment_with_the_groups_mean_as_value_is_dr_grpo_and_over_the_std_grpo(members):
    groups, rewards = np.array([g for g, _ in members]), np.array([r for _, r in members])
    mean, std = (np.array([f(rewards[groups == g]) for g in groups]) for f in (np.mean, np.std))
    found = chain_advantages(partition_by_trajectory(np.full(rewards.size, 5)), mean, rewards).advantage
    np.testing.assert_allclose(found, dr_grpo(rewards, groups).advantage, atol=1e-12)
    apart = std > 1e-6  # closer together, rounding decides
    expected = grpo(rewards, groups).advantage
    np.testing.assert_allclose((found / (std + 1e-8))[apart], expected[apart], atol=1e-6)


@given(groups_of_rewards)
def test_grpo_is_the_group_formula(members):
    groups, rewards = np.array([g for g, _ in members]), np.array([r for _, r in members])
    result = grpo(rewards, groups).advantage
    for g in set(groups.tolist()):
        own = rewards[groups == g]
        if own.std() > 2e-8:
            np.testing.assert_allclose(result[groups == g], (own - own.mean()) / (own.std() + 1e-8), atol=1e-6)
        elif own.std() < 5e-9:  # equal, but for rounding
            assert not result[groups == g].any()


@given(groups_of_rewards, st.randoms())
def test_permuting_responses_permutes_group_advantages(members, seed):
    order = list(range(len(members)))
    seed.shuffle(order)
    groups, rewards = np.array([g for g, _ in members]), np.array([r for _, r in members])
    for method in (grpo, rloo, dr_grpo):
        for found, expected in zip(method(rewards[order], groups[order]), method(rewards, groups), strict=True):
            np.testing.assert_allclose(found, expected[order], atol=1e-6)


@pytest.mark.parametrize("reward", [0.1, 1 / 3, 1000.1])
def test_equal_rewards_earn_exactly_nothing(reward):
    assert grpo([reward] * 7, [0] * 7).advantage.tolist() == [0.0] * 7
    assert rloo([reward] * 7, [0] * 7).advantage.tolist() == [0.0] * 7


def test_groups_of_one_and_names_as_groups():
    assert grpo([1.0, 0.0], ["a", "b"]).advantage.tolist() == [0, 0]
    assert rloo([1.0, 0.5, 0.0], ["a", "b", "b"]).advantage.tolist() == [1, 0.5, -0.5]  # no others: the baseline is 0


def test_no_responses():
    assert grpo([], []).advantage.size == rloo([], []).advantage.size == 0


def test_a_reward_that_is_not_finite():
    with pytest.raises(ValueError, match="finite"):
        grpo([1.0, NAN], [0, 0])


def test_token_partition_gives_every_token_its_own_advantage():
    values = [0.0, 0.5, 0.25]
    assert chain_advantages(partition_by_token([3]), values, [1.0]).advantage.tolist() == [0.5, -0.25, 0.75]
