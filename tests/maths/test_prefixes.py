"""Shared prefixes: checked against all pairs, and the values of the prefix tree that follow from them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages.maths.advantages import Advantages, chain_advantages, leave_own_reward_out, rloo
from stages.maths.partition import partition_by_length, partition_by_trajectory
from stages.maths.prefixes import responses_with_prefix, shared_prefixes
from stages.maths.ragged import Ragged, gather_ranges
from stages.maths.values import monte_carlo_values

RESPONSES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=8)


def as_ids(responses: list[list[int]]) -> list[np.ndarray]:
    return [np.array(tokens, np.int32) for tokens in responses]


def test_three_responses_by_hand():
    order, common = shared_prefixes(as_ids([[7, 1, 2], [300, 1], [7, 1, 1]]))
    assert order.tolist() == [2, 0, 1]
    assert common.tolist() == [2, 0]
    first, count = responses_with_prefix(common, np.array([0, 0, 1, 2]), np.array([2, 3, 1, 0]))
    assert list(zip(first.tolist(), count.tolist(), strict=True)) == [(0, 2), (0, 1), (0, 2), (0, 3)]


@given(RESPONSES)
def test_all_responses_with_a_prefix_are_found(responses):
    order, common = shared_prefixes(as_ids(responses))
    place = np.argsort(order)
    for i, tokens in enumerate(responses):
        for length in range(len(tokens) + 1):
            first, count = responses_with_prefix(common, place[[i]], np.array([length]))
            found = set(order[first[0] : first[0] + count[0]].tolist())
            assert found == {j for j, other in enumerate(responses) if other[:length] == tokens[:length]}


def values_of(responses: list[list[int]], rewards: list[float], size: int) -> tuple[Advantages, np.ndarray, np.ndarray]:
    """Return advantages, responses per start state and trajectory of each segment; segments have `size` tokens."""
    segments = partition_by_length([len(tokens) for tokens in responses], size)
    order, common = shared_prefixes(as_ids(responses))
    first, count = responses_with_prefix(common, np.argsort(order)[segments.trajectory], segments.start)
    seen = gather_ranges(np.array(rewards)[order], first, count)
    return chain_advantages(segments, monte_carlo_values(seen).mean, rewards), count, segments.trajectory


@given(RESPONSES, st.integers(1, 4), st.data())
def test_advantages_of_the_prefix_tree_telescope(responses, size, data):
    rewards = [data.draw(st.floats(-2, 2)) for _ in responses]
    found, _, trajectory = values_of(responses, rewards, size)
    for i, reward in enumerate(rewards):
        own = found.advantage[trajectory == i]
        np.testing.assert_allclose(own.sum(), reward - np.mean(rewards), atol=1e-12)


def test_a_prefix_tree_by_hand():
    # Two responses share [1, 2]; the third shares nothing.
    found, count, _ = values_of([[1, 2, 3, 4], [1, 2, 5, 6], [9, 9]], [1, 0, 0], 2)
    assert count.tolist() == [3, 2, 3, 2, 3]
    np.testing.assert_allclose(found.value_start, [1 / 3, 1 / 2, 1 / 3, 1 / 2, 1 / 3])
    np.testing.assert_allclose(found.value_end, [1 / 2, 1, 1 / 2, 0, 0])
    others = leave_own_reward_out(found, [1, 1, 0, 0, 0], count)
    np.testing.assert_allclose(
        others.value_start, [0, 0, 1 / 2, 1, 1 / 2]
    )  # means over the other responses at the state
    np.testing.assert_allclose(others.advantage, [1 / 2, 1, 0, -1, -1 / 2])


def test_segments_from_unshared_states_have_no_advantage():
    found, count, _ = values_of([[1, 2, 3], [4, 5, 6]], [1, 0], 1)
    assert found.advantage.tolist() == [0.5, 0, 0, -0.5, 0, 0]
    assert leave_own_reward_out(found, [1, 1, 1, 0, 0, 0], count).advantage.tolist() == [1, 0, 0, -1, 0, 0]


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=8))
def test_whole_responses_with_their_own_reward_left_out_are_rloo(rewards):
    segments = partition_by_trajectory([1] * len(rewards))
    group = Ragged(np.tile(rewards, len(rewards)), np.arange(len(rewards) + 1) * len(rewards))
    found = chain_advantages(segments, monte_carlo_values(group).mean, rewards)
    ours = leave_own_reward_out(found, rewards, np.full(len(rewards), len(rewards)))
    np.testing.assert_allclose(ours.advantage, rloo(rewards, np.zeros(len(rewards))).advantage, atol=1e-12)
