"""Compute the losses of the policy step: PPO-clip and KL per token, distillation per segment, and their sums.

Tensors are flat over the kept tokens of a micro-batch, [M]; masked-out tokens are removed beforehand, so that no
formula multiplies by a mask. Sums are divided by counts of the *whole* optimizer batch, which the caller passes. The
losses of micro-batches, accumulation steps and ranks therefore add up to the loss of the batch. Paper: arXiv
2505.23564, policy optimization with probability mask; appendix B for the distillation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LOG_RATIO_LIMIT = 10.0
"""Log-ratios are clamped to ± this value before `exp`, which prevents overflow; beyond it the gradient is 0."""

MAX_MEAN_RATIO = 10.0
"""The trainer skips (and counts) a batch whose mean ratio exceeds this value."""

MAX_DISTILLATION_WEIGHT = 10.0
"""Upper bound of the importance weight of a segment in the distillation loss (appendix B)."""

KLKind = Literal["k1", "k2", "k3"]
KLNormalization = Literal["sequence-sum", "tokens"]
Normalization = Literal["tokens", "sequence", "constant"]


@dataclass(frozen=True)
class PolicySums:
    """Hold sums over the tokens of a micro-batch, each 0-d and detached, and what they are sums of, for each token.

    The sums of micro-batches and ranks add up; divide the totals by the number of tokens for means.

    Attributes:
      ratio: sum of π_θ/π_old (clamped in log space; neither clipped nor capped).
      clip_low: number of tokens whose loss is the branch clipped at 1 − ε (A < 0).
      clip_high: number of tokens whose loss is the branch clipped at 1 + ε_high (A > 0).
      approx_kl: sum of ½ (log π_θ/π_old)², of the log-ratios before they are limited.
      token_ratio: [M], the terms of `ratio`.
      token_clipped: bool [M], whether a token counts in `clip_low` or `clip_high`.
    """

    ratio: Tensor
    clip_low: Tensor
    clip_high: Tensor
    approx_kl: Tensor
    token_ratio: Tensor
    token_clipped: Tensor

    @classmethod
    def of(cls, ratio: Tensor, low: Tensor, high: Tensor, approx_kl: Tensor) -> PolicySums:
        """Sum over tokens: their ratios [M], which of them the loss bounds below and above (bool [M]), and the KL."""
        return cls(ratio.sum(), low.sum().to(ratio), high.sum().to(ratio), approx_kl, ratio, low | high)


@dataclass(frozen=True)
class DistillationSums:
    """Hold sums over the segments of a micro-batch, each 0-d and detached, and which segments were clipped.

    Attributes:
      weight: sum of w.
      weight_clipped: number of segments whose w was clipped.
      log_ratio: sum of Σ_t log π_θ/π_ref.
      segment_clipped: bool [S], whether a segment counts in `weight_clipped`.
    """

    weight: Tensor
    weight_clipped: Tensor
    log_ratio: Tensor
    segment_clipped: Tensor


def ppo_clip(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    importance_cap: float | None = None,
    dual_clip: float | None = None,
) -> tuple[Tensor, PolicySums]:
    """Return the clipped surrogate loss of each token (arXiv 1707.06347).

        r_t = exp(clamp(log π_θ(y_t) − log π_old(y_t), ±10))
        ℓ_t = − min( r_t A_t, clip(r_t, 1 − ε, 1 + ε_high) A_t )

    With `importance_cap` c, the first branch uses min(r_t, c) instead of r_t: truncated importance sampling, for old
    log-probabilities from a sampling engine that differs slightly from the trainer. Its gradient is
    min(r_t, c) A_t ∇log π_θ. For A > 0 the clipped branch bounds the ratio already; for A < 0 the cap does.

    With `dual_clip` c, ℓ_t is at most −c A_t for A_t < 0 (arXiv 1912.09729, eq. 5): a token whose ratio is above c has
    no gradient. It counts as clipped below.

    Args:
      logprobs: [M] floating, log π_θ of the current policy, with gradient.
      old_logprobs: [M], log π_old of the policy that sampled the tokens.
      advantages: [M], advantage of each token's segment, whitened or not.
      epsilon: ε, in [0, 1).
      epsilon_high: ε_high; `epsilon` if None.
      importance_cap: c ≥ 1, or None.
      dual_clip: c > 1, or None.

    Returns:
      The loss of each token [M], and sums for logging.

    Raises:
      ValueError: the shapes differ or are not [M], or a parameter is out of range.
    """
    check_shapes(logprobs, old_logprobs, advantages)
    high = epsilon if epsilon_high is None else epsilon_high
    if not 0 <= epsilon < 1 or high < 0 or (importance_cap or 1) < 1 or (dual_clip is not None and dual_clip <= 1):
        raise ValueError(
            f"expected 0 ≤ epsilon < 1, epsilon_high ≥ 0, importance_cap ≥ 1, dual_clip > 1; "
            f"got {epsilon}, {high}, {importance_cap}, {dual_clip}"
        )
    log_ratio = (logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = log_ratio.exp()
    weight = ratio
    if importance_cap is not None:  # scale by a constant instead of clamping, which would set the gradient to 0
        weight = ratio * (importance_cap / ratio.detach()).clamp(max=1.0)
    unclipped = -advantages * weight
    clipped = -advantages * ratio.clamp(1.0 - epsilon, 1.0 + high)
    token_losses = torch.maximum(unclipped, clipped)
    with torch.no_grad():
        bound = clipped > unclipped
        if dual_clip is not None:
            bound |= (advantages < 0) & (token_losses > -dual_clip * advantages)
        sums = PolicySums.of(
            ratio.detach(),
            bound & (advantages < 0),
            bound & (advantages > 0),
            approx_kl=0.5 * (logprobs - old_logprobs).square().sum(),
        )
    if dual_clip is not None:
        token_losses = torch.where(advantages < 0, torch.minimum(token_losses, -dual_clip * advantages), token_losses)
    return token_losses, sums


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: KLKind = "k3") -> Tensor:
    """Estimate KL(π_θ ‖ π_ref) at each position from the sampled token alone (Schulman 2020, "Approximating KL").

        k1 = −d        k2 = ½ d²        k3 = e^d − d − 1, d clamped to ±10        d = log π_ref − log π_θ

    k1 may be negative; it is not clamped, because clamping would bias it. k3 is never negative.

    Args:
      logprobs: [M] floating, log π_θ of the current policy, with gradient.
      ref_logprobs: [M], log π_ref of the reference policy.
      kind: the estimator.

    Returns:
      [M].

    Raises:
      ValueError: the shapes differ or are not [M], or the kind is unknown.
    """
    check_shapes(logprobs, ref_logprobs)
    difference = ref_logprobs - logprobs
    if kind == "k1":
        return -difference
    if kind == "k2":
        return 0.5 * difference.square()
    if kind == "k3":
        difference = difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        return difference.exp() - difference - 1.0
    raise ValueError(f"expected the KL estimator k1, k2 or k3; got {kind!r}")


def distillation_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    ref_logprobs: Tensor,
    segment: Tensor,
    advantages: Tensor,
    beta: float,
) -> tuple[Tensor, DistillationSums]:
    """Return the distillation loss of each segment: the squared error of its log-ratio (arXiv 2505.23564, appendix B).

        ℓ(n) = ½ w (β Σ_t log(π_θ(y_t) / π_ref(y_t)) − A(n))²        w = min(Π_t π_θ(y_t) / π_old(y_t), 10)

    The sum and the product run over the kept tokens of the segment; w has no gradient. The minimum is at
    π_θ ∝ π_ref exp(A/β), the optimum of the KL-regularized objective. Advantages must therefore be in the units of the
    reward, not whitened.

    Args:
      logprobs: [M] floating, log π_θ of the current policy, with gradient.
      old_logprobs: [M], log π_old of the policy that sampled the tokens.
      ref_logprobs: [M], log π_ref of the reference policy.
      segment: [M] int64 in [0, S), the segment of each token.
      advantages: [S].
      beta: β > 0.

    Returns:
      The loss of each segment [S], and sums for logging.

    Raises:
      ValueError: the shapes differ or are not [M] and [S], or beta is not positive.
    """
    check_shapes(logprobs, old_logprobs, ref_logprobs)
    if beta <= 0 or segment.shape != logprobs.shape or advantages.ndim != 1:
        raise ValueError(
            f"expected beta > 0, segment [M] and advantages [S]; "
            f"got {beta}, {tuple(segment.shape)} and {tuple(advantages.shape)}"
        )

    def segment_sums(values: Tensor) -> Tensor:
        return torch.zeros_like(advantages).index_add(0, segment, values)

    log_ratio = segment_sums(logprobs - ref_logprobs)
    with torch.no_grad():
        unclipped = segment_sums(logprobs - old_logprobs).exp()
        weight = unclipped.clamp(max=MAX_DISTILLATION_WEIGHT)
        above = unclipped > MAX_DISTILLATION_WEIGHT
        sums = DistillationSums(weight.sum(), above.sum().to(weight), log_ratio.sum(), above)
    return 0.5 * weight * (beta * log_ratio - advantages).square(), sums


def token_divisors(
    lengths: NDArray[np.int64], normalization: Normalization, constant: float | None = None
) -> NDArray[np.float64]:
    """Return, for each sequence, the divisor of its token losses that makes their sum over the batch the batch loss.

        tokens     kept tokens of the batch: the mean over all tokens
        sequence   kept tokens of the sequence × sequences with kept tokens: the mean over sequences of token means
        constant   C × sequences: the weight of a sequence grows with its length (Dr. GRPO, arXiv 2503.20783)

    Args:
      lengths: [N] kept tokens of every sequence in the whole optimizer batch.
      normalization: "tokens", "sequence" or "constant".
      constant: C > 0, for "constant" only; for example the maximum response length.

    Returns:
      [N] float64.

    Raises:
      ValueError: the normalization is unknown, or the constant is missing or not positive.
    """
    if normalization == "tokens":
        return np.full(lengths.size, float(lengths.sum()))
    if normalization == "sequence":
        return lengths.astype(np.float64) * np.count_nonzero(lengths)
    if normalization == "constant" and constant and constant > 0:
        return np.full(lengths.size, constant * lengths.size)
    raise ValueError(
        f"expected tokens, sequence, or constant with a constant above 0; got {normalization!r} and {constant}"
    )


def policy_loss(losses: Tensor, divisors: Tensor | float) -> Tensor:
    """Return the contribution of a micro-batch to the loss of the batch: Σ_i ℓ_i / divisor_i.

    Args:
      losses: [M] of tokens, or [S] of segments. With none, the result is 0 and is still differentiable.
      divisors: [M] from `token_divisors`, or one number for all; counts of the *whole* optimizer batch.
    """
    return (losses / divisors).sum()


def kl_loss(token_kls: Tensor, sequences: int | float, beta: float) -> Tensor:
    """Return the contribution of a micro-batch to β · (mean over sequences of Σ_t KL_t): β · Σ_t KL_t / sequences.

    Args:
      token_kls: [M], from `kl_estimate`.
      sequences: number of sequences in the whole optimizer batch, including those without kept tokens.
      beta: β, weight of the KL.

    Raises:
      ValueError: `sequences` is not positive.
    """
    if sequences <= 0:
        raise ValueError(f"expected at least one sequence in the whole batch; got {sequences}")
    return beta * token_kls.sum() / sequences


def check_shapes(logprobs: Tensor, *others: Tensor) -> None:
    """Raise unless all tensors have the same shape [M] and the first is floating."""
    shapes = [tuple(tensor.shape) for tensor in (logprobs, *others)]
    if logprobs.ndim != 1 or len(set(shapes)) != 1 or not logprobs.is_floating_point():
        raise ValueError(f"expected floating tensors of one shape [M]; got {logprobs.dtype} and shapes {shapes}")
