"""Balancing a batch over ranks: every item once, and similar costs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stages.maths.balancing import balanced_groups, contiguous_slices

COSTS = st.lists(st.integers(0, 5000), max_size=60)
COUNTS = st.integers(1, 9)


def test_the_cheapest_group_gets_the_most_expensive_item_of_a_round():
    # Round 1: 9, 8, 7 to groups 0, 1, 2. Round 2: group 2 (cost 7) gets 6, group 1 (8) gets 5, group 0 (9) gets 1.
    assert balanced_groups([1, 9, 5, 8, 7, 6], 3) == [[0, 1], [2, 3], [4, 5]]


@given(COSTS, COUNTS)
def test_balanced_groups_differ_by_one_item_and_by_at_most_the_largest_cost(costs: list[int], count: int):
    groups = balanced_groups(costs, count)
    assert len(groups) == count
    assert sorted(item for group in groups for item in group) == list(range(len(costs)))
    assert all(group == sorted(group) for group in groups)
    sizes = [len(group) for group in groups]
    assert max(sizes) - min(sizes) <= 1
    loads = [sum(costs[item] for item in group) for group in groups]
    assert max(loads) - min(loads) <= max(costs, default=0)


@given(COSTS)
def test_a_single_group_or_slice_has_all_items_in_order(costs: list[int]):
    assert balanced_groups(costs, 1) == [list(range(len(costs)))]
    assert contiguous_slices(costs, 1) == [slice(0, len(costs))]


@given(COSTS, COUNTS)
def test_slices_are_consecutive_and_exceed_the_mean_by_at_most_the_largest_cost(costs: list[int], count: int):
    slices = contiguous_slices(costs, count)
    assert [item for one in slices for item in range(one.start, one.stop)] == list(range(len(costs)))
    for one in slices:
        assert sum(costs[one]) <= sum(costs) / count + max(costs, default=0) + 1e-6


def test_slices_of_equal_items_are_equal():
    assert contiguous_slices([4] * 6, 3) == [slice(0, 2), slice(2, 4), slice(4, 6)]
