"""Define what a policy step minimizes, and compute the contribution of one micro-batch to the loss of the batch."""

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
"""The one metric that is a maximum over micro-batches and ranks; all others are sums."""
LossAndMetrics = tuple[Tensor, dict[str, Tensor]]
"""A micro-batch's contribution to the loss (0-d, with gradient) and to each metric (0-d, detached); contributions add
up to the values of the batch, except `MAX_METRIC`."""


@dataclass(frozen=True)
class Objective:
    """The objective of a policy step (see `maths.losses`).

    Attributes:
      loss: PPO-clip over the kept tokens plus β · KL, or the distillation of segment advantages, where β is part of the
        loss itself.
      temperature: τ of the distribution that log-probabilities are taken of; the same as in sampling.
      epsilon, epsilon_high: clip range of the ratio; PPO-clip only.
      importance_cap: upper bound of the importance weight if the old log-probabilities are those recorded when
        sampling; None: the trainer computed them.
      beta, kl: β, and the estimator of the KL divergence to the reference policy.
      normalization, constant: how token losses are summed (`losses.token_divisors`); PPO-clip only.
      whiten: whiten advantages over the kept tokens of the optimizer batch, of each micro-batch (as the code released
        with the paper does), or not at all.
      max_ratio: a batch with a mean ratio above this is skipped.
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
    """Counts over a whole optimizer batch; micro-batches divide by them, so that their contributions add up.

    Attributes:
      sequences: number of examples, including those without a kept token.
      tokens: number of kept tokens.
      segments: number of segments with a kept token; 0 unless the loss is `distill`.
      compared: number of tokens whose log-probability is compared between sampler and trainer.
      divisors: float64 [sequences], divisor of each token loss of an example.
    """

    sequences: int
    tokens: int
    segments: int
    compared: int
    divisors: NDArray[np.float64]

    @classmethod
    def of(cls, batch: Sequence[Example], objective: Objective) -> BatchTotals:
        """Count the examples, tokens and segments of a batch."""
        lengths = np.array([example.kept.size for example in batch], np.int64)
        divisors = losses.token_divisors(lengths, objective.normalization, objective.constant)
        segments = sum(example.segment_starts.size for example in batch) if objective.loss == "distill" else 0
        compared = sum(int(np.isfinite(example.sampled).sum()) for example in batch if example.sampled is not None)
        return cls(len(batch), int(lengths.sum()), segments, compared, divisors)


@dataclass(frozen=True, eq=False)
class MicroBatchExamples:
    """The examples of one forward pass.

    Attributes:
      indices: their indices in the batch.
      examples: the examples themselves.
      advantages: floating [M] of their kept tokens, whitened if the objective says so.
    """

    indices: list[int]
    examples: list[Example]
    advantages: NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class _LogProbs:
    """Log-probabilities [M] of a micro-batch: of the current policy (with gradient), the old one, the reference."""

    current: Tensor
    old: Tensor
    reference: Tensor | None


def micro_batch_loss(
    objective: Objective, group: MicroBatchExamples, scored: Scored, totals: BatchTotals
) -> LossAndMetrics:
    """Return the contribution of a micro-batch to the batch's loss and metrics.

    Metrics are means over the kept tokens of the batch unless their name says otherwise.
    """
    current, entropy = scored
    old = stored_or_current_logprobs(current, group.examples, [example.old for example in group.examples])
    reference = None
    if objective.beta:
        stored = [example.reference for example in group.examples]
        reference = stored_or_current_logprobs(current, group.examples, stored)
    loss, metrics = _LOSSES[objective.loss](objective, group, _LogProbs(current, old, reference), totals)
    metrics = {"loss": loss.detach(), "entropy": entropy.sum() / totals.tokens} | metrics
    if totals.compared:
        metrics |= _compare_to_sampler(objective, group.examples, current.detach(), old, totals)
    return loss, metrics


def stored_or_current_logprobs(
    current: Tensor, examples: list[Example], stored: list[NDArray[np.floating] | None]
) -> Tensor:
    """Return stored log-probabilities [M], detached; those of the current policy for examples without stored ones.

    An example without stored ones is of the current policy: its weights have not changed since.
    """
    current = current.detach()
    if all(column is None for column in stored):
        return current
    by_example = current.split([example.kept.size for example in examples])
    columns = [
        own if column is None else torch.from_numpy(column) for own, column in zip(by_example, stored, strict=True)
    ]
    return torch.cat([column.to(current) for column in columns])


def _compare_to_sampler(
    objective: Objective, examples: list[Example], current: Tensor, old: Tensor, totals: BatchTotals
) -> dict[str, Tensor]:
    """Compare the sampler's log-probabilities with those of the policy at the start of the call."""
    recorded = [np.full(one.kept.size, np.nan) if one.sampled is None else one.sampled for one in examples]
    sampler = torch.from_numpy(np.concatenate(recorded)).to(current)
    # With an importance cap, `old` is the sampler's own record, and only steps before the first update are compared.
    trainer = old if objective.importance_cap is None else current
    known = sampler.isfinite()
    sums = mismatch_sums(trainer[known], sampler[known], objective.importance_cap or TRUNCATION_CAP)
    return {
        "mismatch/logp_difference_mean": sums.difference / totals.compared,
        "mismatch/kl": sums.kl / totals.compared,
        "mismatch/truncated": sums.truncated / totals.compared,
        MAX_METRIC: sums.largest,
    }


def _ppo(objective: Objective, group: MicroBatchExamples, logprobs: _LogProbs, totals: BatchTotals) -> LossAndMetrics:
    token_losses, sums = losses.ppo_clip(
        logprobs.current,
        logprobs.old,
        torch.from_numpy(np.ascontiguousarray(group.advantages)).to(logprobs.current),
        objective.epsilon,
        objective.epsilon_high,
        objective.importance_cap,
    )
    lengths = [example.kept.size for example in group.examples]
    divisors = torch.from_numpy(np.repeat(totals.divisors[group.indices], lengths)).to(logprobs.current)
    loss = losses.policy_loss(token_losses, divisors)
    metrics = {
        "ratio/mean": sums.ratio / totals.tokens,
        "clip_ratio/low_mean": sums.clip_low / totals.tokens,
        "clip_ratio/high_mean": sums.clip_high / totals.tokens,
        "clip_ratio/region_mean": (sums.clip_low + sums.clip_high) / totals.tokens,
        "approx_kl": sums.approx_kl / totals.tokens,
    }
    if logprobs.reference is not None:
        kls = losses.kl_estimate(logprobs.current, logprobs.reference, objective.kl)
        loss = loss + losses.kl_loss(kls, totals.sequences, objective.beta)
        metrics["kl"] = kls.detach().sum() / totals.tokens
    return loss, metrics


def _distill(
    objective: Objective, group: MicroBatchExamples, logprobs: _LogProbs, totals: BatchTotals
) -> LossAndMetrics:
    current, old, reference = logprobs.current, logprobs.old, logprobs.reference
    assert reference is not None, "the distillation loss has beta > 0"
    # Indices into the [M] kept tokens of the micro-batch: where each example starts, then where each segment starts.
    lengths = [example.kept.size for example in group.examples]
    firsts = np.repeat(np.cumsum([0, *lengths[:-1]]), [example.segment_starts.size for example in group.examples])
    starts = firsts + np.concatenate([example.segment_starts for example in group.examples])
    segment = np.repeat(np.arange(starts.size), np.diff(starts, append=sum(lengths)))
    segment_losses, sums = losses.distillation_loss(
        current,
        old,
        reference,
        torch.from_numpy(segment).to(current.device),
        torch.from_numpy(group.advantages[starts]).to(current),  # all tokens of a segment have one advantage
        objective.beta,
    )
    loss = losses.policy_loss(segment_losses, totals.segments)
    with torch.no_grad():
        ratio = (current - old).clamp(-losses.LOG_RATIO_LIMIT, losses.LOG_RATIO_LIMIT).exp().sum()
        kl = losses.kl_estimate(current, reference, objective.kl).sum()
    return loss, {
        "ratio/mean": ratio / totals.tokens,
        "kl": kl / totals.tokens,
        "distill/weight_mean": sums.weight / totals.segments,
        "distill/weight_clipped": sums.weight_clipped / totals.segments,
        "distill/log_ratio_mean": sums.log_ratio / totals.segments,
    }


_LOSSES: dict[Loss, Callable[[Objective, MicroBatchExamples, _LogProbs, BatchTotals], LossAndMetrics]] = {
    "ppo": _ppo,
    "distill": _distill,
}
