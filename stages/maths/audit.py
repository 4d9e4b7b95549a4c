"""Compare value estimates with reference values: calibration, errors against the number of rollouts, signs, masks.

The reference of a state is the mean of many rollouts that the estimate did not use. It has an error of its own, at most
1/(2√R) for R rewards from 0 to 1; signs are compared only where the reference is certain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.maths.intervals import wilson

CERTAIN = 2.0
"""Standard errors by which the advantage of a segment must differ from 0 for its sign to be certain."""


class Calibration(NamedTuple):
    """One entry per bin of estimates that holds a state.

    Attributes:
      states: int64 [B], number of states.
      estimate: float64 [B], mean of their estimates.
      reference: float64 [B], mean of all their reference rewards.
      low, high: float64 [B], 95 % Wilson interval of `reference`.
    """

    states: NDArray[np.int64]
    estimate: NDArray[np.float64]
    reference: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


class Errors(NamedTuple):
    """The error of estimates from N rollouts.

    Attributes:
      absolute: mean of |V̂ − V| over the states.
      rank: rank correlation of V̂ and V (Spearman, ties share their mean rank); NaN if one of them is constant.
    """

    absolute: float
    rank: float


class Signs(NamedTuple):
    """Signs of estimated advantages among the segments whose reference advantage is certain not to be 0.

    Attributes:
      segments: number of these segments.
      right, zero, wrong: fractions of them with the right sign, with an estimate of 0, with the wrong sign.
    """

    segments: int
    right: float
    zero: float
    wrong: float


class MaskShare(NamedTuple):
    """What a probability mask with one ρ trains.

    Attributes:
      tokens: fraction of the tokens with p < ρ.
      advantage: fraction of Σ |A| that lies in segments with such a token; the rest is never trained.
    """

    tokens: float
    advantage: float


def calibration(estimate: ArrayLike, reference: ArrayLike, rollouts: ArrayLike, bins: int = 10) -> Calibration:
    """Return the mean reference value of the states whose estimate is in each of `bins` equal intervals of [0, 1].

    Args:
      estimate: [S] V̂, from 0 to 1.
      reference: [S] mean of the reference rewards, from 0 to 1.
      rollouts: [S] number of reference rewards, at least 1.

    Raises:
      ValueError: a value is not from 0 to 1, or a state has no reference.
    """
    value, mean, count = _floats(estimate), _floats(reference), _floats(rollouts)
    if not (value.shape == mean.shape == count.shape and np.all(count >= 1)):
        raise ValueError("expected as many estimates as references, each of at least one rollout")
    if np.any((value < 0) | (value > 1) | (mean < 0) | (mean > 1)):
        raise ValueError("calibration requires values from 0 to 1")
    bin_of = np.minimum((value * bins).astype(np.int64), bins - 1)
    states = np.bincount(bin_of, minlength=bins)
    used = states > 0
    total = np.bincount(bin_of, count, bins)[used]
    pooled = np.bincount(bin_of, count * mean, bins)[used] / total
    low, high = wilson(np.clip(pooled, 0, 1), total)
    return Calibration(states[used], np.bincount(bin_of, value, bins)[used] / states[used], pooled, low, high)


def errors(estimate: ArrayLike, reference: ArrayLike) -> Errors:
    """Return the errors of S ≥ 1 estimates.

    Raises:
      ValueError: there are no states, or the shapes differ.
    """
    value, mean = _floats(estimate), _floats(reference)
    if value.shape != mean.shape or not value.size:
        raise ValueError(f"expected as many estimates as references, at least one; got {value.shape} and {mean.shape}")
    return Errors(float(np.abs(value - mean).mean()), _correlation(mean_ranks(value), mean_ranks(mean)))


def signs(estimate: ArrayLike, reference: ArrayLike, standard_error: ArrayLike) -> Signs:
    """Return how often estimated advantages have the sign of the reference.

    Args:
      estimate: [S] estimated advantages.
      reference: [S] reference advantages.
      standard_error: [S] standard errors of `reference`.
    """
    value, truth, error = _floats(estimate), _floats(reference), _floats(standard_error)
    certain = (np.abs(truth) > CERTAIN * error) & (truth != 0)
    if not certain.any():
        return Signs(0, np.nan, np.nan, np.nan)
    product = np.sign(value[certain]) * np.sign(truth[certain])
    return Signs(int(certain.sum()), *(float(np.mean(product == sign)) for sign in (1, 0, -1)))


def mask_shares(
    advantage: ArrayLike, segment: NDArray[np.int64], logprobs: ArrayLike, rhos: Sequence[float]
) -> list[MaskShare]:
    """Return, for each ρ, the fraction of tokens that its mask keeps and the share of |advantage| that they can carry.

    Args:
      advantage: [S] of each segment.
      segment: [V] the segment of each token, numbers from 0 to S − 1.
      logprobs: [V] natural log-probability of each token.
    """
    size, chance = np.abs(_floats(advantage)), np.exp(_floats(logprobs))
    lowest = np.full(size.size, np.inf)
    np.minimum.at(lowest, segment, chance)
    total = size.sum()
    return [
        MaskShare(float(np.mean(chance < rho)), float(size[lowest < rho].sum() / total) if total else np.nan)
        for rho in rhos
    ]


def mean_ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Return the rank of each value from 0; equal values share the mean of their ranks: [S] float64."""
    _, group, count = np.unique(_floats(values), return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count + 1) / 2)[group]


def _correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt(np.sum(x**2) * np.sum(y**2))
    return float(np.sum(x * y) / scale) if scale else np.nan


def _floats(values: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(values, np.float64)
