"""Owns the statistics: masked moments, whitening, and the accuracies of an evaluation with their standard errors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def masked_mean(values: ArrayLike, mask: ArrayLike, axis: int | None = None) -> NDArray[np.float64]:
    """Mean of the values that the mask keeps, over all of them or along an axis; 0 where it keeps none.

    Args:
      values, mask: arrays of one shape; non-zero keeps. What is masked out may be anything, NaN included.

    Raises:
      ValueError: shapes differ.
    """
    values, kept = _masked(values, mask)
    return np.where(kept, values, 0.0).sum(axis) / np.maximum(kept.sum(axis), 1)


def masked_var(values: ArrayLike, mask: ArrayLike, unbiased: bool = True) -> NDArray[np.float64]:
    """Variance of the values that the mask keeps, over n − 1 or, biased, n; 0 where it keeps too few to tell.

    Raises:
      ValueError: shapes differ.
    """
    values, kept = _masked(values, mask)
    squares = np.square(np.where(kept, values, 0.0) - np.where(kept, masked_mean(values, kept), 0.0))
    return squares.sum() / np.maximum(kept.sum() - int(unbiased), 1)


def whiten(values: ArrayLike, shift_mean: bool = True, unbiased: bool = True) -> NDArray[np.float64]:
    """(A − mean) / sqrt(var + 10⁻⁸) over the kept tokens of the whole optimiser batch (arXiv 2505.23564, appendix H).

    One token has no variance and is left as it is; none stay none. Equal values become 0.

    Args:
      values: [M] finite, of the kept tokens only.
      shift_mean: False adds the mean again.

    Returns:
      [M] float64.

    Raises:
      ValueError: not [M], or a value is not finite.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(f"expected finite values [M]; got shape {values.shape} or a value that is not finite")
    if values.size < 2:
        return values.copy()
    mean = values.mean()
    whitened = (values - mean) / np.sqrt(values.var(ddof=int(unbiased)) + 1e-8)
    return whitened if shift_mean else whitened + mean


def pass_at_k(n: ArrayLike, correct: ArrayLike, k: int) -> NDArray[np.float64]:
    """Probability that at least one of k samples is right, unbiased from n ≥ k samples (arXiv 2107.03374, eq. 1).

        pass@k = 1 − C(n − c, k) / C(n, k) = 1 − Π_{j<k} (1 − c / (n − j))

    The product never forms a binomial coefficient, so it neither overflows nor cancels.

    Args:
      n: [Q] samples of each question. correct: [Q] right ones, 0 ≤ c ≤ n. k: 1 ≤ k ≤ n.

    Returns:
      [Q] float64.

    Raises:
      ValueError: numbers outside these bounds.
    """
    n, correct = np.broadcast_arrays(np.asarray(n, np.int64), np.asarray(correct, np.int64))
    if k < 1 or np.any(n < k) or np.any(correct < 0) or np.any(correct > n):
        raise ValueError(f"expected 1 ≤ k ≤ n and 0 ≤ correct ≤ n for every question; got k = {k}")
    missed = np.ones(n.shape)
    for j in range(k):
        missed *= np.maximum(1.0 - correct / (n - j), 0.0)
    return 1.0 - missed


def majority(answers: Sequence[str | None], rewards: Sequence[float]) -> float:
    """maj@k of one question: the reward of the most frequent of k answers.

    None does not vote; if nobody votes the result is 0. Tied answers share the win: the expected reward of drawing one
    of them. An answer's reward is the mean over the responses that gave it.

    Raises:
      ValueError: no answers, or not one reward for each.
    """
    if not answers or len(answers) != len(rewards):
        raise ValueError(f"expected a reward for each of one or more answers; got {len(answers)} and {len(rewards)}")
    ballots: defaultdict[str, list[float]] = defaultdict(list)
    for answer, reward in zip(answers, rewards, strict=True):
        if answer is not None:
            ballots[answer].append(float(reward))
    most = max(map(len, ballots.values()), default=0)
    winners = [sum(ballot) / most for ballot in ballots.values() if len(ballot) == most]
    return sum(winners) / len(winners) if winners else 0.0


def mean_and_standard_error(per_question: ArrayLike) -> tuple[float, float]:
    """Mean over questions and its standard error, std (ddof 1) / √Q.

    The samples of one question are not independent of each other, so a question is the unit (clustered standard error):
    give one value per question, its mean over samples or its pass@k.

    Args:
      per_question: [Q] finite, Q ≥ 1.

    Returns:
      Mean and standard error; the latter is NaN for a single question, which says nothing about the spread.

    Raises:
      ValueError: empty, not [Q], or a value that is not finite.
    """
    values = np.asarray(per_question, np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"expected one finite value for each of one or more questions; got shape {values.shape}")
    error = values.std(ddof=1) / np.sqrt(values.size) if values.size > 1 else np.nan
    return float(values.mean()), float(error)


def _masked(values: ArrayLike, mask: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values, kept = np.asarray(values, np.float64), np.asarray(mask).astype(np.bool_)
    if values.shape != kept.shape:
        raise ValueError(f"expected values and mask of one shape; got {values.shape} and {kept.shape}")
    return values, kept
