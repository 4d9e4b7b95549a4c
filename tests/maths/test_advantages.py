"""Advantages: worked by hand, telescoping along trajectories, and reduction to the group methods."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.maths.advantages import chain_advantages, dr_grpo, grpo, rloo, states_to_estimate, tempo
from stages.maths.partition import (
    partition_by_cutpoints,
    partition_by_length,
    partition_by_token,
    partition_by_trajectory,
    segment_cutpoints,
)
from stages.maths.ragged import Ragged

NAN = float("nan")


def flags(*responses: str) -> tuple[list[int], np.ndarray]:
    return [len(response) for response in responses], np.array([token == "x" for token in "".join(responses)], np.bool_)


# Start states that need a value


def test_the_segment_before_the_first_cutpoint_needs_no_value():
    lengths, is_cutpoint = flags("x.x", "..x", "...", "")
    segments = partition_by_cutpoints(lengths, is_cutpoint, 1)
    cutpoints = segment_cutpoints(segments, lengths, is_cutpoint)
    # x. | x      .. | x      ...      (empty)
    assert states_to_estimate(segments.start, cutpoints).tolist() == [True, True, False, True, False, False]


def test_other_partitions_need_every_value():
    assert states_to_estimate(partition_by_length([3, 4], 2).start, None).all()


def test_cutpoints_of_another_number_of_segments_are_refused():
    with pytest.raises(ValueError, match="2 segments; got 1"):
        states_to_estimate(partition_by_length([4], 2).start, Ragged.of([[]], np.int32))


# Chain


def test_a_chain_by_hand():
    # Two segments with V 0.25 and 0.75, reward 1; one segment with V 0.5, reward 0.
    result = chain_advantages(partition_by_length([4, 2], 2), [0.25, 0.75, 0.5], [1, 0])
    assert result.value_start.tolist() == [0.25, 0.75, 0.5]
    assert result.value_end.tolist() == [0.75, 1, 0]
    assert result.advantage.tolist() == [0.5, 0.25, -0.5]


def test_an_unestimated_first_state_gets_the_value_of_its_end():
    result = chain_advantages(partition_by_cutpoints(*flags("..x"), 1), [NAN, 0.25], [1], np.array([False, True]))
    assert result.value_start.tolist() == [0.25, 0.25]
    assert result.value_end.tolist() == [0.25, 1]
    assert result.advantage.tolist() == [0, 0.75]


def test_without_a_cutpoint_the_value_is_the_reward_and_the_advantage_0():
    result = chain_advantages(partition_by_trajectory([3, 0]), [NAN, NAN], [1, -0.5], np.array([False, False]))
    assert result.value_start.tolist() == result.value_end.tolist() == [1, -0.5]
    assert result.advantage.tolist() == [0, 0]


def test_no_trajectories():
    assert chain_advantages(partition_by_trajectory([]), [], []).advantage.size == 0


def test_a_state_without_a_value_leaves_the_segments_on_both_sides_unknown():
    # V 0.5 | unknown | V 0.25, reward 1: the segments that meet at the unknown state have no advantage
    found = chain_advantages(partition_by_length([6], 2), [0.5, NAN, 0.25], [1])
    np.testing.assert_array_equal(found.advantage, [NAN, NAN, 0.75])
    # where the state before the first cutpoint needs no value, but the one after the segment is unknown
    segments, needs_value = partition_by_cutpoints(*flags("..x.x"), 1), np.array([False, True, True])
    found = chain_advantages(segments, [NAN, NAN, 0.25], [1], needs_value)
    np.testing.assert_array_equal(found.advantage, [NAN, NAN, 0.75])
    # an unknown first state that does need a value is not taken for one that needs none
    found = chain_advantages(partition_by_length([4], 2), [NAN, 0.25], [1])
    np.testing.assert_array_equal(found.advantage, [NAN, 0.75])


def test_a_response_that_could_not_be_graded_has_no_advantages_at_all():
    found = chain_advantages(partition_by_length([4, 2], 2), [0.25, 0.75, 0.5], [NAN, 0])
    np.testing.assert_array_equal(found.advantage, [NAN, NAN, -0.5])


@pytest.mark.parametrize(
    ("values", "rewards", "found"),
    [
        ([0.5, np.inf], [1.0], "finite"),
        ([0.5, 0.5], [-np.inf], "finite"),
        ([0.5], [1.0], "2 segments"),
        ([0.5, 0.5], [1.0, 0.0], "1 trajectories"),
    ],
)
def test_values_and_rewards_that_do_not_match_are_refused(values, rewards, found):
    with pytest.raises(ValueError, match=found):
        chain_advantages(partition_by_length([4], 2), values, rewards)


finite = st.floats(-2, 2)


@given(st.lists(st.tuples(st.text("x.", max_size=10), finite), max_size=6), st.integers(1, 4), st.data())
def test_advantages_telescope_and_follow_their_trajectory(trajectories, interval, data):
    lengths, is_cutpoint = flags(*(response for response, _ in trajectories))
    rewards = [reward for _, reward in trajectories]
    segments = partition_by_cutpoints(lengths, is_cutpoint, interval)
    needs_value = states_to_estimate(segments.start, segment_cutpoints(segments, lengths, is_cutpoint))
    drawn = np.array([data.draw(finite) if estimate else NAN for estimate in needs_value], np.float64)
    advantage = chain_advantages(segments, drawn, rewards, needs_value).advantage
    for i, reward in enumerate(rewards):
        own = segments.trajectory == i
        estimated = drawn[own & needs_value]
        start = estimated[0] if estimated.size else reward
        np.testing.assert_allclose(advantage[own].sum(), reward - start, atol=1e-12)
        alone = chain_advantages(
            partition_by_cutpoints([lengths[i]], flags(trajectories[i][0])[1], interval),
            drawn[own],
            [reward],
            needs_value[own],
        )
        assert np.array_equal(alone.advantage, advantage[own])
    assert np.all(advantage[~needs_value] == 0)


# Groups

groups_of_rewards = st.lists(st.tuples(st.integers(0, 3), finite), min_size=1, max_size=20)


@given(groups_of_rewards)
def test_with_one_segment_and_the_mean_of_the_others_as_value_the_chain_is_rloo(members):
    groups, rewards = np.array([g for g, _ in members]), np.array([r for _, r in members])
    others = np.zeros(rewards.size)
    for i, g in enumerate(groups):
        rest = rewards[(groups == g) & (np.arange(groups.size) != i)]
        others[i] = rest.mean() if rest.size else rewards[i]
    segments = partition_by_trajectory(np.full(rewards.size, 5))
    np.testing.assert_allclose(
        chain_advantages(segments, others, rewards).advantage, rloo(rewards, groups).advantage, atol=1e-12
    )


@given(groups_of_rewards)
def test_with_one_segment_and_the_group_mean_as_value_the_chain_is_dr_grpo(members):
    groups, rewards = np.array([g for g, _ in members]), np.array([r for _, r in members])
    mean, std = (np.array([f(rewards[groups == g]) for g in groups]) for f in (np.mean, np.std))
    found = chain_advantages(partition_by_trajectory(np.full(rewards.size, 5)), mean, rewards).advantage
    np.testing.assert_allclose(found, dr_grpo(rewards, groups).advantage, atol=1e-12)
    distinct = std > 1e-6  # for smaller ones, rounding errors decide
    expected = grpo(rewards, groups).advantage
    np.testing.assert_allclose((found / (std + 1e-8))[distinct], expected[distinct], atol=1e-6)


@given(groups_of_rewards)
def test_grpo_is_the_group_formula(members):
    groups, rewards = np.array([g for g, _ in members]), np.array([r for _, r in members])
    result = grpo(rewards, groups).advantage
    for g in set(groups.tolist()):
        own = rewards[groups == g]
        if own.std() > 2e-8:
            np.testing.assert_allclose(result[groups == g], (own - own.mean()) / (own.std() + 1e-8), atol=1e-6)
        elif own.std() < 5e-9:  # equal up to rounding errors
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
def test_equal_rewards_have_advantages_of_exactly_0(reward):
    assert grpo([reward] * 7, [0] * 7).advantage.tolist() == [0.0] * 7
    assert rloo([reward] * 7, [0] * 7).advantage.tolist() == [0.0] * 7


def test_groups_of_one_and_names_as_groups():
    assert grpo([1.0, 0.0], ["a", "b"]).advantage.tolist() == [0, 0]
    # the only member of a group has no others, so there is nothing to compare its reward with
    assert rloo([1.0, 0.5, 0.0], ["a", "b", "b"]).advantage.tolist() == [0, 0.5, -0.5]


def test_an_unknown_reward_does_not_count_in_its_group():
    rewards, groups = [1.0, NAN, 0.0, 0.5, 1.0, NAN, NAN], [0, 0, 0, 0, 1, 1, 2]
    # group 0 by hand: 1, 0, 0.5 → mean 0.5, std √(1/6); group 1 has a single known reward, group 2 none
    np.testing.assert_array_equal(dr_grpo(rewards, groups).advantage, [0.5, NAN, -0.5, 0, 0, NAN, NAN])
    np.testing.assert_array_equal(dr_grpo(rewards, groups).value_start, [0.5, NAN, 0.5, 0.5, 1, NAN, NAN])
    scaled = 0.5 / np.sqrt(1 / 6)
    np.testing.assert_allclose(grpo(rewards, groups).advantage, [scaled, NAN, -scaled, 0, 0, NAN, NAN], atol=1e-6)
    # the means of the others: 0.25, 0.75 and 0.5
    np.testing.assert_array_equal(rloo(rewards, groups).advantage, [0.75, NAN, -0.75, 0, 0, NAN, NAN])
    np.testing.assert_array_equal(rloo(rewards, groups).value_end, [1, NAN, 0, 0.5, 1, NAN, NAN])


@given(groups_of_rewards, st.data())
def test_unknown_rewards_change_nothing_for_the_others(members, data):
    groups, rewards = np.array([g for g, _ in members]), np.array([r for _, r in members])
    known = np.array(data.draw(st.lists(st.booleans(), min_size=rewards.size, max_size=rewards.size)), np.bool_)
    for method in (grpo, rloo, dr_grpo):
        found = method(np.where(known, rewards, NAN), groups).advantage
        assert np.array_equal(found[known], method(rewards[known], groups[known]).advantage)
        assert np.isnan(found[~known]).all()


def test_no_responses():
    assert grpo([], []).advantage.size == rloo([], []).advantage.size == 0


def test_group_methods_refuse_rewards_that_are_not_finite():
    with pytest.raises(ValueError, match="finite"):
        grpo([1.0, np.inf], [0, 0])


def test_token_partition_gives_every_token_its_own_advantage():
    values = [0.0, 0.5, 0.25]
    assert chain_advantages(partition_by_token([3]), values, [1.0]).advantage.tolist() == [0.5, -0.25, 0.75]


def test_tempo_is_the_group_term_plus_the_branch_term_over_the_deviation():
    """Rewards 1, 0, 0, 0: mean 1/4, std √3/4. The second segment of response 1 begins where others part from it."""
    found = tempo([0.0, 0.5, 0.0], np.array([0, 0, 1]), [1.0, 0.0, 0.0, 0.0], [7, 7, 7, 7])
    std = 3**0.5 / 4
    assert found == pytest.approx([0.75 / std, 1.25 / std, -0.25 / std], abs=1e-6)


def test_tempo_without_a_branch_term_is_grpo_and_without_deviation_0():
    rewards, groups = [1.0, 0.0, 1.0, 0.5, 0.5], [0, 0, 0, 1, 1]
    found = tempo(np.zeros(5), np.arange(5), rewards, groups)
    assert found == pytest.approx(grpo(rewards, groups).advantage)
    assert tempo([0.3], np.array([3]), rewards, groups).tolist() == [0.0]
