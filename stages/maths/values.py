"""Owns the value of a state: as the mean reward of the rollouts drawn from it, and to the best of n attempts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.maths.ragged import Ragged


class ValueEstimates(NamedTuple):
    """What S sets of rollouts say.

    Attributes:
      mean: [S] float64, NaN where no rollout was drawn (the state was not estimated).
      std: [S] float64, of single rewards around the mean (ddof 1), NaN where fewer than two were drawn.
      rollouts: [S] int64, how many.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    rollouts: NDArray[np.int64]


def monte_carlo_values(rewards: Ragged) -> ValueEstimates:
    """V̂(s) = 1/N Σ_j R_j over N independent rollouts from s (arXiv 2505.23564, chain-based estimation).

    Args:
      rewards: S ragged rows of real numbers, the rewards of each state's rollouts.

    Raises:
      ValueError: a reward that is not finite.
    """
    values, count = rewards.flat.astype(np.float64), rewards.lengths
    if not np.isfinite(values).all():
        raise ValueError("every rollout must have a finite reward: leave out those that could not be graded")
    estimated = count > 0
    starts = (rewards.offsets[:-1] - rewards.offsets[0])[estimated]

    mean, std = np.full(count.size, np.nan), np.full(count.size, np.nan)
    if starts.size:  # reduceat takes neither empty rows nor an empty list of them
        mean[estimated] = np.add.reduceat(values, starts) / count[estimated]
        squares = np.square(values - np.repeat(mean[estimated], count[estimated]))
        with np.errstate(invalid="ignore"):
            std[estimated] = np.sqrt(np.add.reduceat(squares, starts) / (count[estimated] - 1))
    return ValueEstimates(mean, std, count)


def group_std(values: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """Standard deviation (ddof 1) of the values of each one's group: [N], NaN in a group of one.

    Args:
      values: [N] finite. groups: [N]; equal numbers are one group, in any order.
    """
    _, group, count = np.unique(groups, return_inverse=True, return_counts=True)
    mean = np.bincount(group, values, count.size) / count
    squares = np.bincount(group, np.square(values - mean[group]), count.size)
    with np.errstate(invalid="ignore"):
        return np.sqrt(squares / (count - 1))[group]


def all_equal(values: NDArray, groups: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether all values of a group are one and the same, so that none stands out: [G].

    Args:
      values: [N]. groups: [N] numbers from 0 to G − 1, in any order.
    """
    size = groups.max(initial=-1) + 1
    low, high = np.full(size, np.inf), np.full(size, -np.inf)
    np.minimum.at(low, groups, values)
    np.maximum.at(high, groups, values)
    return low == high


def best_of_n_values(values: ArrayLike, n: int) -> NDArray[np.float64]:
    """V_μ = 1 − (1 − V)ⁿ: the chance that the best of n attempts from a state is right (arXiv 2505.23564, appendix C).

    Args:
      values: chances of a single attempt, any shape. n: attempts, at least 1.

    Returns:
      float64 of the same shape.

    Raises:
      ValueError: a value that is no probability, n below 1.
    """
    values = np.asarray(values, np.float64)
    if n < 1 or not np.all((values >= 0) & (values <= 1)):
        raise ValueError("the best of n attempts is defined for n ≥ 1 and values that are probabilities, from 0 to 1")
    return 1.0 - (1.0 - values) ** n
