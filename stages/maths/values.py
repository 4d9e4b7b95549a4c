"""Estimate the values of states from the rewards of rollouts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.maths.ragged import Ragged


class ValueEstimates(NamedTuple):
    """Hold the value estimates of S states.

    Attributes:
      mean: [S] float64, the estimate V̂; NaN for a state without rollouts.
      std: [S] float64, standard deviation of the rewards (ddof 1); NaN for fewer than two rollouts.
      rollouts: [S] int64, number of rollouts.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    rollouts: NDArray[np.int64]


def monte_carlo_values(rewards: Ragged) -> ValueEstimates:
    """Return V̂(s) = 1/N Σ_j R_j over N independent rollouts from s (arXiv 2505.23564, chain-based estimation).

    Args:
      rewards: S ragged rows, the rewards of the rollouts from each state.

    Raises:
      ValueError: a reward is not finite.
    """
    values, count = rewards.flat.astype(np.float64), rewards.lengths
    if not np.isfinite(values).all():
        raise ValueError("rewards of rollouts must be finite; leave out rollouts that could not be graded")
    estimated = count > 0
    starts = (rewards.offsets[:-1] - rewards.offsets[0])[estimated]

    mean, std = np.full(count.size, np.nan), np.full(count.size, np.nan)
    if starts.size:  # reduceat supports neither empty rows nor an empty list of rows
        mean[estimated] = np.add.reduceat(values, starts) / count[estimated]
        squares = np.square(values - np.repeat(mean[estimated], count[estimated]))
        with np.errstate(invalid="ignore"):
            std[estimated] = np.sqrt(np.add.reduceat(squares, starts) / (count[estimated] - 1))
    return ValueEstimates(mean, std, count)


def group_std(values: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the standard deviation (ddof 1) of the group of each value: [N] float64, NaN in a group of one.

    Args:
      values: [N] finite, or NaN: unknown, and left out of its group.
      groups: [N] int; values with equal numbers form a group, in any order.
    """
    _, group = np.unique(groups, return_inverse=True)
    known = ~np.isnan(values)
    size, count = group.max(initial=-1) + 1, np.bincount(group[known], minlength=group.max(initial=-1) + 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(group[known], values[known], size) / count
        squares = np.bincount(group[known], np.square(values - mean[group])[known], size)
        return np.where(count > 1, np.sqrt(squares / (count - 1)), np.nan)[group]


def all_equal(values: NDArray, groups: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether all known values of each group are equal: [G] bool. Such a group has no advantages to learn from.

    Args:
      values: [N], NaN where unknown.
      groups: [N] numbers from 0 to G − 1, in any order.
    """
    size = groups.max(initial=-1) + 1
    low, high = np.full(size, np.inf), np.full(size, -np.inf)
    np.fmin.at(low, groups, values)
    np.fmax.at(high, groups, values)
    return low >= high  # low > high: no value is known


def best_of_n_values(values: ArrayLike, n: int) -> NDArray[np.float64]:
    """Return V_μ = 1 − (1 − V)ⁿ, the probability that the best of n attempts succeeds (arXiv 2505.23564, appendix C).

    Args:
      values: V, the probability that a single attempt succeeds; any shape.
      n: number of attempts, at least 1.

    Returns:
      float64 of the same shape.

    Raises:
      ValueError: a value is not a probability, or n is less than 1.
    """
    values = np.asarray(values, np.float64)
    if n < 1 or not np.all((values >= 0) & (values <= 1)):
        raise ValueError(f"expected n ≥ 1 and values that are probabilities, from 0 to 1; got n = {n} and {values}")
    return 1.0 - (1.0 - values) ** n
