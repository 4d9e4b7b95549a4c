"""Owns the losses of the policy step: PPO-clip and the KL to the reference token by token, distillation segment by
segment, and how they are summed.

Everything is flat over the kept tokens of a micro-batch, [M]: what the mask leaves out is not there, so no formula
multiplies by a mask. Sums are divided by counts of the *whole* optimiser batch, which the caller passes: the losses of
micro-batches, accumulation steps and ranks then add up to the loss of the whole. Paper: arXiv 2505.23564,
policy optimization with probability mask, and its appendix B for the distillation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LOG_RATIO_LIMIT = 10.0
"""Log-ratios are clamped to ± this before they are exponentiated; beyond it no gradient flows."""

MAX_MEAN_RATIO = 10.0
"""A batch whose mean ratio is above this is to be skipped whole, and counted."""

MAX_DISTILLATION_WEIGHT = 10.0
"""Where the importance weight of a distilled segment is cut."""

KLKind = Literal["k1", "k2", "k3"]
Normalization = Literal["tokens", "sequence", "constant"]


@dataclass(frozen=True)
class PolicySums:
    """Sums over the tokens of one micro-batch, 0-d and detached; divide the batch's total by its tokens for means.

    Attributes:
      ratio: of π_θ/π_old (clamped in log space, not clipped, not capped).
      clip_low, clip_high: tokens whose loss is the clipped branch, at 1 − ε (A < 0) and at 1 + ε_high (A > 0).
      approx_kl: of ½ (log π_θ/π_old)².
    """

    ratio: Tensor
    clip_low: Tensor
    clip_high: Tensor
    approx_kl: Tensor


@dataclass(frozen=True)
class DistillationSums:
    """Sums over the segments of one micro-batch, 0-d and detached.

    Attributes:
      weight: of w. weight_clipped: segments whose w was cut. log_ratio: of Σ_t log π_θ/π_ref.
    """

    weight: Tensor
    weight_clipped: Tensor
    log_ratio: Tensor


def ppo_clip(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    importance_cap: float | None = None,
) -> tuple[Tensor, PolicySums]:
    """Clipped surrogate of each token.

        r_t = exp(clamp(log π_θ(y_t) − log π_old(y_t), ±10))
        ℓ_t = − min( r_t A_t, clip(r_t, 1 − ε, 1 + ε_high) A_t )

    With `importance_cap` c (old log-probabilities recorded by a sampling engine that differs slightly from the
    trainer) the first branch is weighted by min(r_t, c): truncated importance sampling, its gradient
    min(r_t, c) A_t ∇log π_θ. The clipped branch already bounds A > 0; the cap bounds A < 0.

    Args:
      logprobs: [M] floating, of the current policy, with gradient.
      old_logprobs: [M] of the policy that sampled.
      advantages: [M] of each token's segment, whitened or not.
      epsilon: lower clip range. epsilon_high: upper clip range, `epsilon` if None.
      importance_cap: c ≥ 1, or None.

    Returns:
      Loss of each token [M], and the sums of what is worth watching.

    Raises:
      ValueError: shapes differ or are not [M], or a parameter is out of its range.
    """
    _check(logprobs, old_logprobs, advantages)
    high = epsilon if epsilon_high is None else epsilon_high
    if not 0 <= epsilon < 1 or high < 0 or (importance_cap is not None and importance_cap < 1):
        raise ValueError(
            f"expected 0 ≤ epsilon < 1, epsilon_high ≥ 0, importance_cap ≥ 1; got {epsilon}, {high}, {importance_cap}"
        )
    log_ratio = (logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = log_ratio.exp()
    weight = ratio
    if importance_cap is not None:  # scaled, not clamped: a clamp would stop the gradient of the tokens it truncates
        weight = ratio * (importance_cap / ratio.detach()).clamp(max=1.0)
    unclipped = -advantages * weight
    clipped = -advantages * ratio.clamp(1.0 - epsilon, 1.0 + high)
    with torch.no_grad():
        bound = clipped > unclipped
        sums = PolicySums(
            ratio=ratio.sum(),
            clip_low=(bound & (advantages < 0)).sum().to(ratio),
            clip_high=(bound & (advantages > 0)).sum().to(ratio),
            approx_kl=0.5 * log_ratio.square().sum(),
        )
    return torch.maximum(unclipped, clipped), sums


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: KLKind = "k3") -> Tensor:
    """Estimate of KL(π_θ ‖ π_ref) at each token, from the one token that was sampled (Schulman 2020).

        k1 = −d        k2 = ½ d²        k3 = e^d − d − 1, d clamped to ±10        d = log π_ref − log π_θ

    k1 may be negative and is left so: clamping it would make it biased. k3 is never negative.

    Args:
      logprobs: [M] floating, of the current policy, with gradient.
      ref_logprobs: [M] of the reference policy.

    Returns:
      [M].

    Raises:
      ValueError: shapes differ or are not [M], or an unknown kind.
    """
    _check(logprobs, ref_logprobs)
    difference = ref_logprobs - logprobs
    if kind == "k1":
        return -difference
    if kind == "k2":
        return 0.5 * difference.square()
    if kind == "k3":
        difference = difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        return difference.exp() - difference - 1.0
    raise ValueError(f"the KL estimators are k1, k2 and k3; got {kind!r}")


def distillation_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    ref_logprobs: Tensor,
    segment: Tensor,
    advantages: Tensor,
    beta: float,
) -> tuple[Tensor, DistillationSums]:
    """Squared error of each segment: how far the policy's log-ratio is from what the advantage asks for (appendix B).

        ℓ(n) = ½ w (β Σ_t log(π_θ(y_t) / π_ref(y_t)) − A(n))²        w = min(Π_t π_θ(y_t) / π_old(y_t), 10)

    t runs over the segment's kept tokens; w carries no gradient. At its minimum π_θ ∝ π_ref exp(A/β), the optimum of
    the KL-regularised objective, so A is meant in the reward's units: not whitened.

    Args:
      logprobs: [M] floating, of the current policy, with gradient.
      old_logprobs: [M] of the policy that sampled.
      ref_logprobs: [M] of the reference policy.
      segment: int64 [M] in [0, S), the segment of each token.
      advantages: [S].
      beta: β > 0.

    Returns:
      Loss of each segment [S], and the sums of what is worth watching.

    Raises:
      ValueError: shapes differ or are not [M], or beta is not positive.
    """
    _check(logprobs, old_logprobs, ref_logprobs)
    if beta <= 0 or segment.shape != logprobs.shape or advantages.ndim != 1:
        raise ValueError(
            f"expected beta > 0, segment [M] and advantages [S]; "
            f"got {beta}, {tuple(segment.shape)} and {tuple(advantages.shape)}"
        )

    def of_segments(values: Tensor) -> Tensor:
        return torch.zeros_like(advantages).index_add(0, segment, values)

    log_ratio = of_segments(logprobs - ref_logprobs)
    with torch.no_grad():
        unclipped = of_segments(logprobs - old_logprobs).exp()
        weight = unclipped.clamp(max=MAX_DISTILLATION_WEIGHT)
        sums = DistillationSums(weight.sum(), (unclipped > MAX_DISTILLATION_WEIGHT).sum().to(weight), log_ratio.sum())
    return 0.5 * weight * (beta * log_ratio - advantages).square(), sums


def token_divisors(
    lengths: NDArray[np.int64], normalisation: Normalization, constant: float | None = None
) -> NDArray[np.float64]:
    """What the loss of each token of a sequence is divided by, so that the sum over the batch is its loss.

        tokens     Σ over all sequences of their kept tokens: every token counts the same
        sequence   the sequence's kept tokens times the sequences that have one: the mean of the sequences' means
        constant   C times the sequences: a sequence counts by its length (Dr. GRPO, arXiv 2503.20783)

    Args:
      lengths: [N] kept tokens of every sequence of the whole optimiser batch.
      constant: C > 0, for `constant` only, e.g. the longest response that is allowed.

    Returns:
      [N].

    Raises:
      ValueError: an unknown normalisation, or a constant that is missing or not positive.
    """
    if normalisation == "tokens":
        return np.full(lengths.size, float(lengths.sum()))
    if normalisation == "sequence":
        return lengths.astype(np.float64) * np.count_nonzero(lengths)
    if normalisation == "constant" and constant and constant > 0:
        return np.full(lengths.size, constant * lengths.size)
    raise ValueError(
        f"expected tokens, sequence, or constant with a constant above 0; got {normalisation!r} and {constant}"
    )


def policy_loss(losses: Tensor, divisors: Tensor | float) -> Tensor:
    """A micro-batch's share of the batch's loss: Σ_i ℓ_i / divisor_i.

    Args:
      losses: [M] of tokens (or [S] of segments), M may be 0 (then the share is 0, and has a gradient to flow back).
      divisors: as `token_divisors` gives them, [M], or one for all; a count of the *whole* optimiser batch.
    """
    return (losses / divisors).sum()


def kl_loss(token_kls: Tensor, sequences: int | float, beta: float) -> Tensor:
    """A micro-batch's share of β · mean over sequences of Σ_t KL_t: β · Σ_t KL_t / sequences.

    Args:
      token_kls: [M], from `kl_estimate`.
      sequences: sequences of the whole optimiser batch, those without a kept token included.

    Raises:
      ValueError: sequences is not positive.
    """
    if sequences <= 0:
        raise ValueError(f"the whole batch must have at least one sequence; got {sequences}")
    return beta * token_kls.sum() / sequences


def _check(logprobs: Tensor, *others: Tensor) -> None:
    shapes = [tuple(tensor.shape) for tensor in (logprobs, *others)]
    if logprobs.ndim != 1 or len(set(shapes)) != 1 or not logprobs.is_floating_point():
        raise ValueError(f"expected floating tensors of one shape [M]; got {logprobs.dtype} and shapes {shapes}")
