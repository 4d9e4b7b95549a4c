"""Allocate rollouts to states adaptively: more where the confidence interval of a value is wide, within a budget."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.maths.intervals import wilson_width


def additional_rollouts(
    mean: ArrayLike, count: ArrayLike, maximum: int, width: float, confidence: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return how many more rollouts each state needs: as many again while its Wilson interval is wider than `width`.

    Doubling inspects the rewards only log₂(maximum / first count) times. The decision to stop depends on the outcomes,
    so values of states that stop early are biased towards 0 or 1: E[V̂] ≠ V, unlike with a fixed number of rollouts.

    Args:
      mean, count: [S] mean reward and number of the rollouts drawn so far, count at least 1.
      maximum: total number of rollouts that a state may have.
      width: width of the interval at which a state is accurate enough.
      confidence: level of the interval, between 0 and 1.

    Returns:
      [S] int64, additional rollouts, 0 for a state that is accurate enough or has `maximum` rollouts; and [S] float64,
      the current widths.
    """
    count = np.asarray(count, np.int64)
    more, widths = np.minimum(2 * count, maximum) - count, wilson_width(mean, count, confidence)
    return np.where(widths > width, more, 0), widths


def grant_rollouts(
    requested: NDArray[np.int64], urgency: NDArray[np.float64], group: NDArray[np.int64], remaining: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Grant requests from the remaining budget of each group: the most urgent first, ties in the given order.

    Args:
      requested: [S] rollouts that each state requests, at least 0.
      urgency: [S] priority; larger is earlier.
      group: [S] the group of each state, numbers from 0 to G − 1.
      remaining: [G] budget of each group, at least 0.

    Returns:
      [S] int64, at most `requested`; the sum over a group is at most its remaining budget.
    """
    order = np.lexsort((np.arange(requested.size), -urgency, group))
    sorted_requests, sorted_groups = requested[order], group[order]
    before = np.cumsum(sorted_requests) - sorted_requests
    before -= before[np.searchsorted(sorted_groups, sorted_groups)]  # requests of the same group that come earlier
    granted = np.empty_like(requested)
    granted[order] = np.clip(remaining[sorted_groups] - before, 0, sorted_requests)
    return granted


def split_in_proportion(total: int, weights: NDArray[np.int64]) -> NDArray[np.int64]:
    """Split a total into integers in proportion to weights; each is at least its exact share rounded down.

    Args:
      total: number to split.
      weights: [G] integers of at least 0. Their order decides which entries get the remainder of the rounding.

    Returns:
      [G] int64 that sums to `total`; zeros if all weights are 0.
    """
    # Round the cumulative shares, not each share: the differences then sum to the total. Python integers cannot
    # overflow in total · border.
    borders = np.concatenate([[0], np.cumsum(weights)])
    return np.diff([total * int(border) // max(int(borders[-1]), 1) for border in borders]).astype(np.int64)
