"""Owns what a policy step minimises: which loss, summed how, of which tokens; and a micro-batch's share of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.maths import losses
from stages.maths.mismatch_sums import TRUNCATION_CAP, mismatch_sums
from stages.optimization.batches import Example
from stages.optimization.head import Scored

Loss = Literal["ppo", "distill"]
Whitening = Literal["batch", "micro-batch", "none"]
MAX_METRIC = "mismatch/logp_difference_max"
"""The one metric of which micro-batches and ranks have the greatest, not the sum."""
LossAndMetrics = tuple[Tensor, dict[str, Tensor]]
"""A micro-batch's part of the batch's loss, and of each metric: the sum over micro-batches is the batch's (but for
`MAX_METRIC`)."""


@dataclass(frozen=True)
class Objective:
    """What the step minimises (see `maths.losses`).

    Attributes:
      loss: PPO-clip over the kept tokens plus β · KL, or the distillation of segment advantages, whose β stands inside.
      temperature: τ of the distribution whose ratios are taken: that of sampling.
      importance_cap: where ratios to log-probabilities that were recorded when sampling are truncated; None: the old
        ones are the trainer's own.
      normalization, constant: how the losses of tokens are summed (`losses.token_divisors`); PPO-clip only.
      whiten: over the kept tokens of the whole optimiser batch, of each micro-batch (the released code), or not.
      max_ratio: a batch whose mean ratio is above this is skipped whole.
    """

    loss: Loss = "ppo"
    temperature: float = 1.0
    epsilon: float = 0.2
    epsilon_high: float | None = None
    importance_cap: float | None = None
    beta: float = 0.0
    kl: losses.KLKind = "k3"
    normalization: losses.Normalization = "tokens"
    constant: float | None = None
    whiten: Whitening = "batch"
    max_ratio: float = losses.MAX_MEAN_RATIO


@dataclass(frozen=True, eq=False)
class BatchTotals:
    """What the shares of a batch are measured by: counts of the whole of it.

    Attributes:
      sequences: examples, those without a kept token included.
      tokens: their kept tokens. segments: their segments that have one. compared: tokens whose sampler's
        log-probability is to be compared with the policy's.
      divisors: float64 [sequences], of the loss of each token of an example.
    """

    sequences: int
    tokens: int
    segments: int
    compared: int
    divisors: NDArray[np.float64]

    @classmethod
    def of(cls, batch: Sequence[Example], objective: Objective) -> BatchTotals:
        """The counts of a batch."""
        lengths = np.array([example.kept.size for example in batch], np.int64)
        divisors = losses.token_divisors(lengths, objective.normalization, objective.constant)
        segments = sum(example.segment_starts.size for example in batch) if objective.loss == "distill" else 0
        compared = sum(int(np.isfinite(example.sampled).sum()) for example in batch if example.sampled is not None)
        return cls(len(batch), int(lengths.sum()), segments, compared, divisors)


@dataclass(frozen=True, eq=False)
class MicroBatchExamples:
    """The examples of one forward pass.

    Attributes:
      indices: their places in the batch.
      examples: the same.
      advantages: floating [M] of their kept tokens, as the loss takes them.
    """

    indices: list[int]
    examples: list[Example]
    advantages: NDArray[np.floating]


def micro_batch_loss(
    objective: Objective, group: MicroBatchExamples, scored: Scored, whole: BatchTotals
) -> LossAndMetrics:
    """The loss of a group's tokens, and metrics: means over the batch's kept tokens if not said otherwise."""
    logprobs, entropy = scored
    old = _beside(logprobs, group.examples, [example.old for example in group.examples])
    reference = None
    if objective.beta:
        reference = _beside(logprobs, group.examples, [example.reference for example in group.examples])
    loss, sums = _SHARES[objective.loss](objective, group, logprobs, old, reference, whole)
    sums |= _compare(objective, group.examples, logprobs.detach(), old, whole) if whole.compared else {}
    return loss, {"loss": loss.detach(), "entropy": entropy.sum() / whole.tokens} | sums


def _compare(
    objective: Objective, examples: list[Example], own: Tensor, old: Tensor, whole: BatchTotals
) -> dict[str, Tensor]:
    """The sampler's log-probabilities against the policy's as it was when the call started."""
    none = [np.full(example.kept.size, np.nan) for example in examples]
    recorded = [fill if e.sampled is None else e.sampled for e, fill in zip(examples, none, strict=True)]
    sampler = torch.from_numpy(np.concatenate(recorded)).to(own)
    trainer = old if objective.importance_cap is None else own
    known = sampler.isfinite()
    found = mismatch_sums(trainer[known], sampler[known], objective.importance_cap or TRUNCATION_CAP)
    return {
        "mismatch/logp_difference_mean": found.difference / whole.compared,
        "mismatch/kl": found.kl / whole.compared,
        "mismatch/truncated": found.truncated / whole.compared,
        MAX_METRIC: found.largest,
    }


def _ppo(
    objective: Objective,
    group: MicroBatchExamples,
    logprobs: Tensor,
    old: Tensor,
    reference: Tensor | None,
    whole: BatchTotals,
) -> LossAndMetrics:
    token_losses, watched = losses.ppo_clip(
        logprobs,
        old,
        torch.from_numpy(np.ascontiguousarray(group.advantages)).to(logprobs),
        objective.epsilon,
        objective.epsilon_high,
        objective.importance_cap,
    )
    lengths = [example.kept.size for example in group.examples]
    divisors = torch.from_numpy(np.repeat(whole.divisors[group.indices], lengths)).to(logprobs)
    loss = losses.policy_loss(token_losses, divisors)
    sums = {
        "ratio/mean": watched.ratio / whole.tokens,
        "clip_ratio/low_mean": watched.clip_low / whole.tokens,
        "clip_ratio/high_mean": watched.clip_high / whole.tokens,
        "clip_ratio/region_mean": (watched.clip_low + watched.clip_high) / whole.tokens,
        "approx_kl": watched.approx_kl / whole.tokens,
    }
    if reference is not None:
        kls = losses.kl_estimate(logprobs, reference, objective.kl)
        loss = loss + losses.kl_loss(kls, whole.sequences, objective.beta)
        sums["kl"] = kls.detach().sum() / whole.tokens
    return loss, sums


def _distill(
    objective: Objective,
    group: MicroBatchExamples,
    logprobs: Tensor,
    old: Tensor,
    reference: Tensor | None,
    whole: BatchTotals,
) -> LossAndMetrics:
    assert reference is not None, "the distillation has a beta above 0"
    lengths = [example.kept.size for example in group.examples]
    firsts = np.repeat(np.cumsum([0, *lengths[:-1]]), [example.segment_starts.size for example in group.examples])
    starts = firsts + np.concatenate([example.segment_starts for example in group.examples])
    segment = np.repeat(np.arange(starts.size), np.diff(starts, append=sum(lengths)))
    segment_losses, watched = losses.distillation_loss(
        logprobs,
        old,
        reference,
        torch.from_numpy(segment).to(logprobs.device),
        torch.from_numpy(group.advantages[starts]).to(logprobs),
        objective.beta,
    )
    loss = losses.policy_loss(segment_losses, whole.segments)
    with torch.no_grad():
        ratio = (logprobs - old).clamp(-losses.LOG_RATIO_LIMIT, losses.LOG_RATIO_LIMIT).exp().sum()
        kl = losses.kl_estimate(logprobs, reference, objective.kl).sum()
    return loss, {
        "ratio/mean": ratio / whole.tokens,
        "kl": kl / whole.tokens,
        "distill/weight_mean": watched.weight / whole.segments,
        "distill/weight_clipped": watched.weight_clipped / whole.segments,
        "distill/log_ratio_mean": watched.log_ratio / whole.segments,
    }


_SHARES: dict[
    Loss, Callable[[Objective, MicroBatchExamples, Tensor, Tensor, Tensor | None, BatchTotals], LossAndMetrics]
] = {
    "ppo": _ppo,
    "distill": _distill,
}


def _beside(logprobs: Tensor, examples: list[Example], stored: list[NDArray[np.floating] | None]) -> Tensor:
    """Stored log-probabilities [M]; the policy's own, where it has not moved since they would have been stored."""
    own = logprobs.detach()
    if all(column is None for column in stored):
        return own
    parts = own.split([example.kept.size for example in examples])
    mixed = [part if column is None else torch.from_numpy(column) for part, column in zip(parts, stored, strict=True)]
    return torch.cat([part.to(own) for part in mixed])
