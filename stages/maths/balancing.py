"""Distribute the items of a batch over ranks so that all ranks have similar work."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


def balanced_groups(costs: Sequence[int] | NDArray[np.integer], groups: int) -> list[list[int]]:
    """Distribute items so that group sizes differ by at most 1 and group costs by at most the cost of one item.

    Items are assigned in rounds, the most expensive first. Within a round, each group gets one item, and the group with
    the lowest cost so far gets the most expensive.

    Args:
      costs: [N] cost of each item, at least 0.
      groups: number of groups, at least 1.

    Returns:
      The item indices of each group, increasing; every item is in exactly one group. Deterministic.
    """
    order = np.argsort(-np.asarray(costs, np.int64), kind="stable")
    members: list[list[int]] = [[] for _ in range(groups)]
    loads = np.zeros(groups, np.int64)
    for first in range(0, len(order), groups):
        round_items = order[first : first + groups]
        for group, item in zip(np.argsort(loads, kind="stable"), round_items, strict=False):  # the last round is short
            members[group].append(int(item))
            loads[group] += costs[item]
    return [sorted(items) for items in members]


def contiguous_slices(costs: Sequence[int] | NDArray[np.integer], count: int) -> list[slice]:
    """Split items into consecutive slices; each costs at most total / count plus the cost of one item.

    A slice ends where the running cost, measured at the middle of each item, passes a multiple of total / count.

    Args:
      costs: [N] cost of each item, at least 0.
      count: number of slices, at least 1. Slices may be empty if there are few items or one item dominates.
    """
    weights = np.asarray(costs, np.float64)
    middles = np.cumsum(weights) - weights / 2
    cuts = np.searchsorted(middles, weights.sum() * np.arange(1, count) / count)
    ends = [0, *cuts.tolist(), len(weights)]
    return [slice(first, last) for first, last in pairwise(ends)]
