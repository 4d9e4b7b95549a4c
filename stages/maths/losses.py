"""Owns the loss of the policy step: PPO-clip and the KL to the reference, token by token, and how tokens are summed.

Everything is flat over the kept tokens of a micro-batch, [M]: what the mask leaves out is not there, so no formula
multiplies by a mask. Sums are divided by counts of the *whole* optimiser batch, which the caller passes: the losses of
micro-batches, accumulation steps and ranks then add up to the loss of the whole. Paper: arXiv 2505.23564,
policy optimization with probability mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 10.0
"""Log-ratios are clamped to ± this before they are exponentiated; beyond it no gradient flows."""

MAX_MEAN_RATIO = 10.0
"""A batch whose mean ratio is above this is to be skipped whole, and counted."""

KLKind = Literal["k1", "k2", "k3"]


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
            clip_low=(bound & (advantages < 0)).sum(),
            clip_high=(bound & (advantages > 0)).sum(),
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


def policy_loss(token_losses: Tensor, tokens: int | float) -> Tensor:
    """A micro-batch's share of the batch's mean: Σ_t ℓ_t / tokens.

    Args:
      token_losses: [M], M may be 0 (then the share is 0, and still has a gradient to flow back).
      tokens: kept tokens of the whole optimiser batch, all micro-batches and ranks; 0 only if M is 0.

    Raises:
      ValueError: fewer tokens than are given here.
    """
    if tokens < token_losses.numel():
        raise ValueError(f"the whole batch has {tokens} kept tokens, but this part of it has {token_losses.numel()}")
    return token_losses.sum() / max(tokens, 1)


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
