"""Compute the losses that keep entropy up by restraining tokens whose log-probability and advantage vary together.

arXiv 2505.22617: under policy gradients entropy falls with the covariance of log π_θ(y_t) and A_t, and few tokens carry
most of it. Tensors are flat over the kept tokens of a micro-batch, [M], as in `stages.maths.losses`. As in the released
code, the covariance is taken within a micro-batch:

    c_t = (A_t − mean A) (log π_θ(y_t) − mean log π_θ)
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.maths.losses import LOG_RATIO_LIMIT, PolicySums, check_shapes, ppo_clip

FRACTION = 2e-4
"""Share of the tokens that are restrained, as in the released defaults."""
CLIP_RANGE = (1.0, 5.0)
"""Bounds of c_t between which Clip-Cov drops tokens."""


def clip_cov(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    low: float,
    high: float,
    fraction: float = FRACTION,
    bounds: tuple[float, float] = CLIP_RANGE,
) -> tuple[Tensor, PolicySums]:
    """Return the loss of Clip-Cov: PPO-clip without a few tokens of large covariance.

        candidates: tokens that PPO does not clip, with bounds[0] < c_t < bounds[1]
        ℓ_t = 0 for max(1, ⌊fraction · M⌋) of them, else as in PPO-clip

    The released code draws these tokens at random. Here they are spread evenly over the candidates, in the order of the
    tokens, so that the loss needs no random numbers. They have no gradient and are not counted as clipped.

    Args:
      logprobs, old_logprobs, advantages, low, high: as `losses.ppo_clip` takes them.
      fraction: in (0, 1].
      bounds: the covariances between which tokens are candidates.

    Raises:
      ValueError: as `losses.ppo_clip`, or a fraction or bounds out of range.
    """
    if not 0 < fraction <= 1 or bounds[0] >= bounds[1]:
        raise ValueError(f"expected a fraction in (0, 1] and increasing bounds; got {fraction} and {bounds}")
    token_losses, sums = ppo_clip(logprobs, old_logprobs, advantages, low, high)
    if not token_losses.numel():
        return token_losses, sums
    with torch.no_grad():
        ratio = (logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
        clipped = -advantages * ratio.clamp(1.0 - low, 1.0 + high) > -advantages * ratio
        covariance = _covariance(logprobs, advantages)
        inside = (covariance > bounds[0]) & (covariance < bounds[1]) & ~clipped
        candidates = inside.nonzero()[:, 0]
        count = min(max(int(fraction * token_losses.numel()), 1), candidates.numel())
        spread = torch.arange(count, device=candidates.device) * candidates.numel() // max(count, 1)
        keep = torch.ones_like(token_losses)
        keep[candidates[spread]] = 0.0
    return token_losses * keep, sums


def kl_cov(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    fraction: float = FRACTION,
    weight: float = 1.0,
) -> tuple[Tensor, PolicySums]:
    """Return the loss of KL-Cov: the plain surrogate, with a penalty on the tokens of the largest covariance.

        ℓ_t = −r_t A_t + weight · |log π_θ(y_t) − log π_old(y_t)|   for the max(1, ⌊fraction · M⌋) largest c_t
        ℓ_t = −r_t A_t                                             else;   no ratio is clipped

    Args:
      logprobs, old_logprobs, advantages: as `losses.ppo_clip` takes them.
      fraction: in (0, 1].
      weight: of the penalty, at least 0.

    Raises:
      ValueError: the shapes differ or are not [M], or a parameter is out of range.
    """
    check_shapes(logprobs, old_logprobs, advantages)
    if not 0 < fraction <= 1 or weight < 0:
        raise ValueError(f"expected a fraction in (0, 1] and a weight of at least 0; got {fraction} and {weight}")
    difference = logprobs - old_logprobs
    ratio = difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    penalized = torch.zeros_like(ratio)
    if ratio.numel():
        count = max(int(fraction * ratio.numel()), 1)
        penalized[_covariance(logprobs.detach(), advantages).topk(count).indices] = weight
    none = torch.zeros_like(ratio, dtype=torch.bool)
    sums = PolicySums.of(ratio.detach(), none, none, 0.5 * difference.detach().square().sum())
    return -advantages * ratio + penalized * difference.abs(), sums


def _covariance(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """Return c_t: [M]."""
    return (advantages - advantages.mean()) * (logprobs - logprobs.mean())
