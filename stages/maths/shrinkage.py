"""Shrink Monte Carlo values towards a prior that needs no rollouts."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def shrink(mean: ArrayLike, count: ArrayLike, prior: ArrayLike, weight: float) -> NDArray[np.float64]:
    """Return the mean of a prior and of draws, the prior counting as `weight` draws.

        V = (N · V̂ + κ · p) / (N + κ)

    For rewards 0 and 1 this is the posterior mean of the probability of a reward of 1 under a Beta(κp, κ(1 − p)) prior.
    The equation is our own choice; RREDCoT (arXiv 2606.06475) takes the policy's probability of the answer without
    rollouts (N = 0).

    Args:
      mean: [S] V̂, the mean of N rewards; not read where N is 0.
      count: [S] N, at least 0.
      prior: [S] p.
      weight: κ, above 0.

    Returns:
      [S] float64; p itself where N is 0.
    """
    mean, count, prior = np.broadcast_arrays(*(np.asarray(one, np.float64) for one in (mean, count, prior)))
    return (np.where(count > 0, count * mean, 0) + weight * prior) / (count + weight)
