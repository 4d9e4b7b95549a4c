"""Owns how rollouts are shared out where not every state needs the same number: by interval width, within a budget."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.maths.intervals import wilson_width


def additional_rollouts(
    mean: ArrayLike, count: ArrayLike, most: int, width: float, confidence: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """How many more rollouts each state asks for: as many again while its Wilson interval is wider than `width`.

    Doubling looks at the rewards so far only log₂(most / first) times. Stopping where they agree is a choice by the
    outcome, so a value that was stopped early is drawn towards 0 or 1 a little: E[V̂] ≠ V, unlike with a fixed number.

    Args:
      mean, count: [S] of the rollouts that were drawn, count at least 1.
      most: no state gets more in all.

    Returns:
      [S] int64, 0 where it is certain enough or has the most; and [S] how wide the interval is.
    """
    count = np.asarray(count, np.int64)
    more, found = np.minimum(2 * count, most) - count, wilson_width(mean, count, confidence)
    return np.where(found > width, more, 0), found


def grant_rollouts(
    wanted: NDArray[np.int64], urgency: NDArray[np.float64], group: NDArray[np.int64], left: NDArray[np.int64]
) -> NDArray[np.int64]:
    """What each state gets of what is left to its group: the most urgent first, equally urgent ones in their order.

    Args:
      wanted: [S] at least 0. urgency: [S]. group: [S] numbers from 0. left: [G] at least 0.

    Returns:
      [S] int64, at most `wanted`; sums over a group to at most what is left to it.
    """
    order = np.lexsort((np.arange(wanted.size), -urgency, group))
    asked, of = wanted[order], group[order]
    before = np.cumsum(asked) - asked
    before -= before[np.searchsorted(of, of)]  # within the group
    granted = np.empty_like(wanted)
    granted[order] = np.clip(left[of] - before, 0, asked)
    return granted


def split_in_proportion(total: int, weights: NDArray[np.int64]) -> NDArray[np.int64]:
    """A total in whole numbers, in proportion to the weights: none gets less than its proportion, rounded down.

    Args:
      weights: [G] whole numbers of at least 0, in an order of their own: it decides who gets what rounding leaves.

    Returns:
      [G] int64 that sums to the total, or zeros without any weight.
    """
    borders = np.concatenate([[0], np.cumsum(weights)])
    return np.diff([total * int(border) // max(int(borders[-1]), 1) for border in borders]).astype(np.int64)
