"""Owns the Monte Carlo value of a state: the mean reward of the rollouts drawn from it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.maths.ragged import Ragged


class Values(NamedTuple):
    """What S sets of rollouts say.

    Attributes:
      mean: [S] float64, NaN where no rollout was drawn (the state was not estimated).
      std: [S] float64, of single rewards around the mean (ddof 1), NaN where fewer than two were drawn.
      rollouts: [S] int64, how many.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    rollouts: NDArray[np.int64]


def monte_carlo(rewards: Ragged) -> Values:
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
    return Values(mean, std, count)
