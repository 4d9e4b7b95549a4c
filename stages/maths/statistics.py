"""Owns the statistics: masked moments, whitening; an evaluation's accuracies, their standard errors and comparison."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

ROUNDING = 1e-6
"""Means of rewards nearer than this are equal: rewards are stored in float32."""

_DRAWS = 20_000
_WIDEST = 2**17  # reach of a sum, in steps, up to which its distribution is computed
_DENOMINATORS = range(1, 1025)
_RESOLUTION = 1e-15  # of a probability from a Fourier transform: smaller ones are told as this


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


def pass_at_k(n: ArrayLike, correct: ArrayLike, k: ArrayLike) -> NDArray[np.float64]:
    """Probability that at least one of k samples is right, unbiased from n ≥ k samples (arXiv 2107.03374, eq. 1).

        pass@k = 1 − C(n − c, k) / C(n, k) = 1 − Π_{j<k} (1 − c / (n − j))

    The product never forms a binomial coefficient, so it neither overflows nor cancels.

    Args:
      n: [Q] samples of each question. correct: [Q] right ones, 0 ≤ c ≤ n. k: 1 ≤ k ≤ n, for all or [Q].

    Returns:
      [Q] float64.

    Raises:
      ValueError: numbers outside these bounds.
    """
    n, correct, k = np.broadcast_arrays(*(np.asarray(x, np.int64) for x in (n, correct, k)))
    if np.any(k < 1) or np.any(n < k) or np.any(correct < 0) or np.any(correct > n):
        raise ValueError(f"expected 1 ≤ k ≤ n and 0 ≤ correct ≤ n for every question; got k = {k}")
    missed = np.ones(n.shape)
    for j in range(int(k.max(initial=0))):
        missed *= np.where(j < k, np.maximum(1.0 - correct / np.maximum(n - j, 1), 0.0), 1.0)
    return 1.0 - missed


def maj_at_k(question: ArrayLike, answer: ArrayLike, rewards: ArrayLike, questions: int) -> NDArray[np.float64]:
    """maj@k of each question: the reward of the most frequent of its answers.

    A response without an answer does not vote; where nobody votes the result is 0. Tied answers share the win: the
    expected reward of drawing one of them. An answer's reward is the mean over the responses that gave it.

    Args:
      question: [N] from 0, the question of each response. answer: [N] equal numbers for equal answers, negative for
        none. rewards: [N]. questions: Q.

    Returns:
      [Q] float64.

    Raises:
      ValueError: lengths differ.
    """
    question, answer = np.asarray(question, np.int64), np.asarray(answer, np.int64)
    rewards = np.asarray(rewards, np.float64)
    if not question.shape == answer.shape == rewards.shape == (question.size,):
        raise ValueError(f"expected three of one length; got {question.shape}, {answer.shape} and {rewards.shape}")
    votes = answer >= 0
    ballot = question[votes] * (answer.max(initial=0) + 1) + answer[votes]
    _, first, of, count = np.unique(ballot, return_index=True, return_inverse=True, return_counts=True)
    asked, reward = question[votes][first], np.bincount(of, weights=rewards[votes]) / count
    most = np.zeros(questions, np.int64)
    np.maximum.at(most, asked, count)
    wins = count == most[asked]
    total = np.bincount(asked[wins], weights=reward[wins], minlength=questions)
    return total / np.maximum(np.bincount(asked[wins], minlength=questions), 1)


def question_means(question: ArrayLike, values: ArrayLike, questions: int) -> NDArray[np.float64]:
    """Mean of each question's values, however many it has; NaN where it has none.

    Args:
      question: [N] from 0, the question of each value. values: [N]. questions: Q.

    Returns:
      [Q] float64.
    """
    question, values = np.asarray(question), np.asarray(values, np.float64)
    count = np.bincount(question, minlength=questions)
    with np.errstate(invalid="ignore"):
        return np.bincount(question, weights=values, minlength=questions) / count


def mean_and_standard_error(per_question: ArrayLike) -> tuple[float, float]:
    """Mean over questions and its standard error, std (ddof 1) / √Q.

    Clustered by question (arXiv 2411.00640, sec. 2.2): the samples of one question are not independent of each other,
    so give one value per question, its mean over samples (`question_means`) or its pass@k. Questions count alike,
    however many samples each has. Of paired differences this is the paired standard error.

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


def sign_flip_p_value(differences: ArrayLike) -> float:
    """Two-sided p-value of a paired comparison: how often chance signs give a sum as far from 0 as the one found.

        p = P(|Σ ±d_q| ≥ |Σ d_q|), every sign + or − with probability 1/2

    Were the two evaluations alike, each question's difference would as soon have the other sign (Fisher's permutation
    test); no distribution of the differences is assumed. With one response each it is McNemar's exact test. Exact where
    the differences are whole multiples of one unit, as means of 0 and 1 are; else from 20,000 drawn sign patterns.

    Args:
      differences: [Q] finite, one for each question.

    Returns:
      0 < p ≤ 1, nothing below 10⁻¹⁵; 1 where no question differs.

    Raises:
      ValueError: not [Q], or a value that is not finite.
    """
    differences = np.asarray(differences, np.float64)
    if differences.ndim != 1 or not np.isfinite(differences).all():
        raise ValueError(f"expected one finite difference per question; got shape {differences.shape}")
    differences = differences[np.abs(differences) > ROUNDING]
    if not differences.size:
        return 1.0
    steps = _whole_steps(differences)
    return _drawn_p_value(differences) if steps is None else _exact_p_value(steps)


def _whole_steps(differences: NDArray[np.float64]) -> NDArray[np.int64] | None:
    """The differences in multiples of 1/n for the least n that makes them whole; None for none, or too many."""
    values = np.unique(np.abs(differences))
    for n in _DENOMINATORS:
        if np.abs(values * n - np.rint(values * n)).max() < ROUNDING * n:
            steps = np.rint(differences * n).astype(np.int64)
            return steps if np.abs(steps).sum() <= _WIDEST else None
    return None


def _exact_p_value(steps: NDArray[np.int64]) -> float:
    """The distribution of Σ ±s from its characteristic function, Π cos(t s), by a discrete Fourier transform."""
    reach, observed = int(np.abs(steps).sum()), int(abs(steps.sum()))
    if observed == 0:
        return 1.0
    size = 2 * reach + 1
    t = 2 * np.pi / size * np.arange(size)
    characteristic = np.ones(size)
    for step, count in zip(*np.unique(np.abs(steps), return_counts=True), strict=True):
        characteristic *= np.cos(t * step) ** count
    probability = np.fft.fft(characteristic).real / size
    tail = max(float(probability[observed : reach + 1].sum()), _RESOLUTION)
    return min(2 * tail, 1.0)


def _drawn_p_value(differences: NDArray[np.float64]) -> float:
    rng = np.random.default_rng(0)
    block = max(1, 10**7 // differences.size)
    extreme = 0
    for first in range(0, _DRAWS, block):
        signs = rng.integers(0, 2, (min(block, _DRAWS - first), differences.size), np.int8)
        sums = 2 * (signs @ differences) - differences.sum()
        extreme += int((np.abs(sums) >= abs(differences.sum()) - ROUNDING).sum())
    return (1 + extreme) / (1 + _DRAWS)


def _masked(values: ArrayLike, mask: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values, kept = np.asarray(values, np.float64), np.asarray(mask).astype(np.bool_)
    if values.shape != kept.shape:
        raise ValueError(f"expected values and mask of one shape; got {values.shape} and {kept.shape}")
    return values, kept
