"""Compute Wilson confidence intervals of mean rewards; their width is not 0 when all rewards agree."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray


def wilson(
    mean: ArrayLike, count: ArrayLike, confidence: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the score interval for a probability p, given the mean of n outcomes (Wilson, JASA 22, 1927).

        (p̂ + z²/2n ± z·√(p̂(1 − p̂)/n + z²/4n²)) / (1 + z²/n),    z = Φ⁻¹((1 + confidence)/2)

    The interval is derived for outcomes 0 and 1. Rewards between 0 and 1 have less variance, so the interval is
    conservative for them.

    Args:
      mean: p̂, from 0 to 1; broadcast with `count`.
      count: n, at least 1.
      confidence: level of the interval, between 0 and 1.

    Returns:
      Lower and upper ends, float64, within [0, 1].

    Raises:
      ValueError: an argument is out of bounds.
    """
    p, n = np.broadcast_arrays(np.asarray(mean, np.float64), np.asarray(count, np.float64))
    if not (0 < confidence < 1 and np.all((p >= 0) & (p <= 1)) and np.all(n >= 1)):
        raise ValueError(
            f"expected means from 0 to 1, counts from 1 and a confidence between 0 and 1; got {confidence}"
        )
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    center = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return np.maximum(center - half, 0.0), np.minimum(center + half, 1.0)


def wilson_width(mean: ArrayLike, count: ArrayLike, confidence: float = 0.95) -> NDArray[np.float64]:
    """Return the width of the `wilson` interval; 1 if there are no outcomes, because then any p is possible."""
    mean, count = np.broadcast_arrays(np.asarray(mean, np.float64), np.asarray(count, np.float64))
    low, high = wilson(np.where(count > 0, mean, 0.5), np.maximum(count, 1), confidence)
    return np.where(count > 0, high - low, 1.0)
