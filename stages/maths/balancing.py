"""Owns how a batch is shared out over ranks, so that all have about as much to do."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


def balanced_groups(costs: Sequence[int] | NDArray[np.integer], parts: int) -> list[list[int]]:
    """Shares whose numbers of items differ by at most one, and whose costs by at most the largest item's.

    Items are dealt out in rounds, the dearest first; within a round the share that has had least gets the dearest.

    Args:
      costs: [N] of each item, at least 0.
      parts: how many shares, at least 1.

    Returns:
      Of each share its items, rising; together every item once. The same for the same costs, on every machine.
    """
    order = np.argsort(-np.asarray(costs, np.int64), kind="stable")
    shares: list[list[int]] = [[] for _ in range(parts)]
    loads = np.zeros(parts, np.int64)
    for first in range(0, len(order), parts):
        dealt = order[first : first + parts]
        for share, item in zip(np.argsort(loads, kind="stable"), dealt, strict=False):
            shares[share].append(int(item))
            loads[share] += costs[item]
    return [sorted(share) for share in shares]


def contiguous_slices(costs: Sequence[int] | NDArray[np.integer], parts: int) -> list[slice]:
    """Slices of items in their order: each costs at most an equal share and the largest item.

    A cut stands where the running sum, taken in the middle of an item, passes a multiple of total / parts.

    Args:
      costs: [N] of each item, at least 0.
      parts: how many slices, at least 1; some are empty where items are fewer, or one outweighs the rest.
    """
    weights = np.asarray(costs, np.float64)
    middles = np.cumsum(weights) - weights / 2
    cuts = np.searchsorted(middles, weights.sum() * np.arange(1, parts) / parts)
    ends = [0, *cuts.tolist(), len(weights)]
    return [slice(first, last) for first, last in pairwise(ends)]
