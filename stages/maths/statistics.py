"""Compute statistics: whitening of advantages; accuracies of an evaluation, their standard errors and comparisons."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

ROUNDING = 1e-6
"""Mean rewards that differ by less than this are equal, because rewards are stored in float32."""

_WHITEN_EPSILON = 1e-8  # added to the variance, as in the released code
_DRAWS = 20_000  # random sign patterns for a p-value that is not computed exactly
_DRAW_BLOCK_ELEMENTS = 10**7  # signs in memory at a time: 10 MB
_MAX_EXACT_SUM = 2**17  # largest sum of |differences|, in units, whose distribution is computed exactly
_DENOMINATORS = range(1, 1025)  # candidates n for the unit 1/n
_RESOLUTION = 1e-15  # accuracy of a probability from the Fourier transform; smaller p-values are reported as this


def whiten(values: ArrayLike, shift_mean: bool = True, unbiased: bool = True) -> NDArray[np.float64]:
    """Return (A − mean) / sqrt(var + 10⁻⁸) over the kept tokens of an optimizer batch (arXiv 2505.23564, appendix H).

    Equal values become 0. A single value has no variance and is returned unchanged.

    Args:
      values: [M] finite, advantages of the kept tokens only; M may be 0.
      shift_mean: whether the result has mean 0; otherwise the mean is added back.
      unbiased: whether the variance is divided by M − 1 instead of M.

    Returns:
      [M] float64.

    Raises:
      ValueError: the shape is not [M], or a value is not finite.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(f"expected finite values [M]; got shape {values.shape} or a value that is not finite")
    if values.size < 2:
        return values.copy()
    mean = values.mean()
    whitened = (values - mean) / np.sqrt(values.var(ddof=int(unbiased)) + _WHITEN_EPSILON)
    return whitened if shift_mean else whitened + mean


def pass_at_k(n: ArrayLike, correct: ArrayLike, k: ArrayLike) -> NDArray[np.float64]:
    """Estimate the probability that at least one of k samples is correct, without bias (arXiv 2107.03374, eq. 1).

        pass@k = 1 − C(n − c, k) / C(n, k) = 1 − Π_{j<k} (1 − c / (n − j))

    The product avoids binomial coefficients, which overflow for large n.

    Args:
      n: [Q] number of samples of each question.
      correct: [Q] number c of correct samples, 0 ≤ c ≤ n.
      k: [Q] or one number for all questions, 1 ≤ k ≤ n.

    Returns:
      [Q] float64.

    Raises:
      ValueError: an argument is out of bounds.
    """
    n, correct, k = np.broadcast_arrays(*(np.asarray(x, np.int64) for x in (n, correct, k)))
    if np.any(k < 1) or np.any(n < k) or np.any(correct < 0) or np.any(correct > n):
        raise ValueError(f"expected 1 ≤ k ≤ n and 0 ≤ correct ≤ n for every question; got k = {k}")
    all_wrong = np.ones(n.shape)
    for j in range(int(k.max(initial=0))):
        all_wrong *= np.where(j < k, np.maximum(1.0 - correct / np.maximum(n - j, 1), 0.0), 1.0)
    return 1.0 - all_wrong


def maj_at_k(question: ArrayLike, answer: ArrayLike, rewards: ArrayLike, questions: int) -> NDArray[np.float64]:
    """Return maj@k of each question: the reward of its most frequent answer.

    The reward of an answer is the mean over the responses that gave it. If several answers are tied, the result is the
    mean of their rewards (the expected reward of a random choice among them). Responses without an answer do not count;
    the result is 0 if no response has one.

    Args:
      question: [N] the question of each response, numbers from 0.
      answer: [N] equal numbers for equal answers, negative for no answer.
      rewards: [N].
      questions: Q, number of questions.

    Returns:
      [Q] float64.

    Raises:
      ValueError: the lengths differ.
    """
    question, answer = np.asarray(question, np.int64), np.asarray(answer, np.int64)
    rewards = np.asarray(rewards, np.float64)
    if not question.shape == answer.shape == rewards.shape == (question.size,):
        raise ValueError(
            f"expected three arrays of one length; got {question.shape}, {answer.shape} and {rewards.shape}"
        )
    has_answer = answer >= 0
    # One number for each pair of question and answer; below, one entry for each distinct pair.
    pair = question[has_answer] * (answer.max(initial=0) + 1) + answer[has_answer]
    _, first, pair_of_response, votes = np.unique(pair, return_index=True, return_inverse=True, return_counts=True)
    pair_question = question[has_answer][first]
    pair_reward = np.bincount(pair_of_response, weights=rewards[has_answer]) / votes
    most_votes = np.zeros(questions, np.int64)
    np.maximum.at(most_votes, pair_question, votes)
    wins = votes == most_votes[pair_question]
    total = np.bincount(pair_question[wins], weights=pair_reward[wins], minlength=questions)
    return total / np.maximum(np.bincount(pair_question[wins], minlength=questions), 1)


def question_means(question: ArrayLike, values: ArrayLike, questions: int) -> NDArray[np.float64]:
    """Return the mean of the values of each question; NaN for a question without values.

    Args:
      question: [N] the question of each value, numbers from 0.
      values: [N].
      questions: Q, number of questions.

    Returns:
      [Q] float64.
    """
    question, values = np.asarray(question), np.asarray(values, np.float64)
    count = np.bincount(question, minlength=questions)
    with np.errstate(invalid="ignore"):
        return np.bincount(question, weights=values, minlength=questions) / count


def mean_and_standard_error(per_question: ArrayLike) -> tuple[float, float]:
    """Return the mean over questions and its standard error, std (ddof 1) / √Q.

    The error is clustered by question (arXiv 2411.00640, sec. 2.2): samples of one question are not independent, so
    pass one value per question, such as its mean over samples (`question_means`) or its pass@k. All questions have the
    same weight. For paired differences this is the paired standard error.

    Args:
      per_question: [Q] finite, Q ≥ 1.

    Returns:
      Mean and standard error. The error is NaN for a single question.

    Raises:
      ValueError: the array is empty or not [Q], or a value is not finite.
    """
    values = np.asarray(per_question, np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"expected one finite value per question, at least one; got shape {values.shape}")
    error = values.std(ddof=1) / np.sqrt(values.size) if values.size > 1 else np.nan
    return float(values.mean()), float(error)


def sign_flip_p_value(differences: ArrayLike) -> float:
    """Return the two-sided p-value of a paired comparison by random sign flips (Fisher's permutation test).

        p = P(|Σ ±d_q| ≥ |Σ d_q|), every sign + or − with probability 1/2

    If the two evaluations are equally good, the difference of each question is as likely to have the other sign. No
    distribution of the differences is assumed. With one response per question this is McNemar's exact test. The p-value
    is exact if all differences are integer multiples of one unit, as for means of rewards 0 and 1; otherwise it is
    estimated from 20,000 random sign patterns.

    Args:
      differences: [Q] finite, one per question.

    Returns:
      10⁻¹⁵ ≤ p ≤ 1; 1 if no question differs.

    Raises:
      ValueError: the shape is not [Q], or a value is not finite.
    """
    differences = np.asarray(differences, np.float64)
    if differences.ndim != 1 or not np.isfinite(differences).all():
        raise ValueError(f"expected one finite difference per question; got shape {differences.shape}")
    differences = differences[np.abs(differences) > ROUNDING]
    if not differences.size:
        return 1.0
    units = _integer_units(differences)
    return _sampled_p_value(differences) if units is None else _exact_p_value(units)


def _integer_units(differences: NDArray[np.float64]) -> NDArray[np.int64] | None:
    """Return the differences in units of 1/n for the smallest n that makes them integers.

    None if there is no such n, or if the sum is too large for `_exact_p_value`.
    """
    values = np.unique(np.abs(differences))
    for n in _DENOMINATORS:
        if np.abs(values * n - np.rint(values * n)).max() < ROUNDING * n:
            units = np.rint(differences * n).astype(np.int64)
            return units if np.abs(units).sum() <= _MAX_EXACT_SUM else None
    return None


def _exact_p_value(units: NDArray[np.int64]) -> float:
    """Compute the distribution of Σ ±u from its characteristic function, Π cos(t u), by a Fourier transform."""
    largest, observed = int(np.abs(units).sum()), int(abs(units.sum()))
    if observed == 0:
        return 1.0
    size = 2 * largest + 1  # the sums from −largest to largest
    t = 2 * np.pi / size * np.arange(size)
    characteristic = np.ones(size)
    for unit, count in zip(*np.unique(np.abs(units), return_counts=True), strict=True):
        characteristic *= np.cos(t * unit) ** count
    probability = np.fft.fft(characteristic).real / size
    tail = max(float(probability[observed : largest + 1].sum()), _RESOLUTION)
    return min(2 * tail, 1.0)


def _sampled_p_value(differences: NDArray[np.float64]) -> float:
    """Estimate the p-value from random sign patterns; the fixed seed makes it reproducible."""
    rng = np.random.default_rng(0)
    block = max(1, _DRAW_BLOCK_ELEMENTS // differences.size)
    extreme = 0
    for first in range(0, _DRAWS, block):
        signs = rng.integers(0, 2, (min(block, _DRAWS - first), differences.size), np.int8)
        sums = 2 * (signs @ differences) - differences.sum()
        extreme += int((np.abs(sums) >= abs(differences.sum()) - ROUNDING).sum())
    return (1 + extreme) / (1 + _DRAWS)  # counts the observed pattern, so that p is never 0
