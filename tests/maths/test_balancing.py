"""A batch shared out over ranks: everything once, and about as much for everyone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stages.maths.balancing import balanced_groups, contiguous_slices

COSTS = st.lists(st.integers(0, 5000), max_size=60)
PARTS = st.integers(1, 9)


def test_the_dearest_go_round_and_who_has_least_takes_first():
    # Round 1: 9 8 7 to shares 0 1 2; round 2: share 2 (7) takes 6, share 1 (8) takes 5, share 0 (9) takes 1.
    assert balanced_groups([1, 9, 5, 8, 7, 6], 3) == [[0, 1], [2, 3], [4, 5]]


@given(COSTS, PARTS)
def test_a_balanced_share_differs_by_one_item_and_the_cost_of_the_dearest(costs: list[int], parts: int):
    shares = balanced_groups(costs, parts)
    assert len(shares) == parts
    assert sorted(item for share in shares for item in share) == list(range(len(costs)))
    assert all(share == sorted(share) for share in shares)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    loads = [sum(costs[item] for item in share) for share in shares]
    assert max(loads) - min(loads) <= max(costs, default=0)


@given(COSTS)
def test_one_share_is_everything_in_order(costs: list[int]):
    assert balanced_groups(costs, 1) == [list(range(len(costs)))]
    assert contiguous_slices(costs, 1) == [slice(0, len(costs))]


@given(COSTS, PARTS)
def test_slices_follow_one_another_and_cost_at_most_their_part_and_the_dearest_item(costs: list[int], parts: int):
    slices = contiguous_slices(costs, parts)
    assert [item for one in slices for item in range(one.start, one.stop)] == list(range(len(costs)))
    for one in slices:
        assert sum(costs[one]) <= sum(costs) / parts + max(costs, default=0) + 1e-6


def test_slices_of_equal_items_are_equal():
    assert contiguous_slices([4] * 6, 3) == [slice(0, 2), slice(2, 4), slice(4, 6)]
