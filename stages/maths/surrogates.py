"""Compute the policy losses other than PPO-clip, and weights that correct for a sampler that is not the trainer.

Tensors are flat over the kept tokens of a micro-batch, [M], as in `stages.maths.losses`, and so are the results: the
loss of each token, and sums for logging. d_t = log π_θ(y_t) − log π_old(y_t), clamped to ±10, and r_t = exp(d_t).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from stages.maths.losses import LOG_RATIO_LIMIT, PolicySums, check_shapes

Correction = Literal["tis", "mis"]
CorrectionLevel = Literal["token", "sequence"]

DPPO_MAX_RATIO = 20.0
"""Upper bound of the weight r_t in DPPO (arXiv 2602.04879)."""
SAPO_TEMPERATURES = (1.0, 1.05)
"""τ of the gate for A > 0 and for A ≤ 0 in SAPO (arXiv 2511.20347): a larger one closes the gate earlier."""


def shared_ratio(logprobs: Tensor, old_logprobs: Tensor, group: Tensor, groups: int) -> Tensor:
    """Return the old log-probabilities [M] that give all tokens of a group one ratio, the geometric mean of theirs.

        log s_t = sg(mean of d over the group of t) + log π_θ(y_t) − sg(log π_θ(y_t))

    sg stops the gradient, so the value of s_t is the same for all tokens of a group and each has the gradient of its
    own log-probability. If a group is a sequence, `losses.ppo_clip` with the result is GSPO-token (arXiv 2507.18071,
    eq. 13 and 14). If it is a segment, the ratio fits advantages of segments. If it is one token, it is PPO.

    Args:
      group: [M] int64 in [0, groups), the sequence or segment of each token.

    Raises:
      ValueError: the shapes differ or are not [M].
    """
    check_shapes(logprobs, old_logprobs)
    if group.shape != logprobs.shape:
        raise ValueError(f"expected a group for each of {tuple(logprobs.shape)} tokens; got {tuple(group.shape)}")
    current = logprobs.detach()
    zeros = current.new_zeros(groups)
    count = zeros.index_add(0, group, torch.ones_like(current))
    mean = zeros.index_add(0, group, current - old_logprobs) / count.clamp(min=1)
    return current - mean[group]


def cispo(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, epsilon: float, epsilon_high: float
) -> tuple[Tensor, PolicySums]:
    """Return the CISPO loss (arXiv 2506.13585, eq. 4): the clipped ratio is a weight, and no token loses its gradient.

    ℓ_t = − sg( clip(r_t, 1 − ε, 1 + ε_high) ) A_t log π_θ(y_t)
    """
    ratio = _ratio(logprobs, old_logprobs, advantages)
    weight = ratio.clamp(1.0 - epsilon, 1.0 + epsilon_high)
    return -weight * advantages * logprobs, _sums(ratio, ratio < weight, ratio > weight)


def dppo(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, low: float, high: float
) -> tuple[Tensor, PolicySums]:
    """Return the DPPO loss with the binary total variation (arXiv 2602.04879): drop by the difference of probabilities.

        ℓ_t = − m_t sg( min(r_t, 20) ) A_t log π_θ(y_t)
        m_t = 1[π_θ(y_t) − π_old(y_t) ≤ high] for A_t > 0, else 1[π_old(y_t) − π_θ(y_t) ≤ low]

    A bound of the ratio drops tokens of low probability first, although they contribute little to the divergence.
    """
    ratio = _ratio(logprobs, old_logprobs, advantages)
    change = logprobs.detach().exp() - old_logprobs.exp()
    raised, lowered = (advantages > 0) & (change > high), (advantages <= 0) & (change < -low)
    weight = ratio.clamp(max=DPPO_MAX_RATIO) * ~(raised | lowered)
    return -weight * advantages * logprobs, _sums(ratio, lowered, raised)


def nll(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> tuple[Tensor, PolicySums]:
    """Return the negative log-likelihood weighted by the advantage, ℓ_t = −A_t log π_θ(y_t): no ratio, no clip.

    With A = 1 for selected responses it is supervised fine-tuning on them (ReST-EM, arXiv 2312.06585).
    """
    ratio = _ratio(logprobs, old_logprobs, advantages)
    never = torch.zeros_like(advantages, dtype=torch.bool)
    return -advantages * logprobs, _sums(ratio, never, never)


def sapo(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> tuple[Tensor, PolicySums]:
    """Return the SAPO loss (arXiv 2511.20347): a smooth gate around r = 1 instead of a clip.

        ℓ_t = − (4 / τ) σ( τ (r_t − 1) ) A_t        τ = 1 for A_t > 0, 1.05 else

    The gradient is that of −r_t A_t at r_t = 1 and decays on both sides.
    """
    check_shapes(logprobs, old_logprobs, advantages)
    ratio = (logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    positive, other = SAPO_TEMPERATURES
    temperature = torch.where(advantages > 0, positive, other)
    gate = torch.sigmoid(temperature * (ratio - 1.0)) * 4.0 / temperature
    never = torch.zeros_like(advantages, dtype=torch.bool)
    return -gate * advantages, _sums(ratio.detach(), never, never)


def correction_weights(
    trainer: Tensor,
    sampler: Tensor,
    sequence: Tensor,
    sequences: int,
    kind: Correction,
    level: CorrectionLevel,
    cap: float,
) -> Tensor:
    """Return the weight of each token's loss that corrects for the mismatch between sampler and trainer: [M].

        w = π_trainer / π_sampler of the token, or the product over the kept tokens of its sequence
        tis: min(w, C)        mis: w if w ≤ C, else 0

    Truncated importance sampling (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL
    training"); masked (Liu et al. 2025, "When speed kills stability"). Both probabilities are of the policy that
    sampled, at the sampling temperature: one from the trainer's forward pass, one recorded by the sampling engine. The
    ratio of the policy loss has the trainer's in the denominator, so the product is the ratio to the sampler.

    Args:
      trainer, sampler: [M] log-probabilities without gradient; where the sampler's are not finite, w is 1.
      sequence: [M] int64 in [0, sequences), the sequence of each token.
      cap: C ≥ 1.

    Raises:
      ValueError: the shapes differ or are not [M], or the cap is below 1.
    """
    check_shapes(trainer, sampler)
    if cap < 1 or sequence.shape != trainer.shape:
        raise ValueError(f"expected a cap of at least 1 and sequence [M]; got {cap} and {tuple(sequence.shape)}")
    difference = torch.where(sampler.isfinite(), trainer - sampler, 0.0)
    if level == "sequence":
        difference = difference.new_zeros(sequences).index_add(0, sequence, difference)[sequence]
    weight = difference.clamp(-2 * LOG_RATIO_LIMIT, 2 * LOG_RATIO_LIMIT).exp()
    return weight.clamp(max=cap) if kind == "tis" else weight * (weight <= cap)


def _ratio(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> Tensor:
    """Return r_t without gradient: [M]."""
    check_shapes(logprobs, old_logprobs, advantages)
    return (logprobs.detach() - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def _sums(ratio: Tensor, low: Tensor, high: Tensor) -> PolicySums:
    """Return the sums for logging; `low` and `high` mark the tokens that the loss bounds below and above."""
    return PolicySums.of(ratio, low, high, approx_kl=0.5 * ratio.log().square().sum())
