"""Define what a policy step minimizes, and compute the contribution of one micro-batch to the loss of the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.maths import covariance_losses, losses, preferences, surrogates
from stages.maths.mismatch_sums import TRUNCATION_CAP, mismatch_sums
from stages.optimization.batches import Example
from stages.optimization.head import Scored

Loss = Literal[
    "ppo", "gspo", "segment-ratio", "cispo", "dppo", "sapo", "clip-cov", "kl-cov", "nll", "distill", "dpo-positive"
]
Whitening = Literal["batch", "micro-batch", "none"]
MAX_METRIC = "mismatch/logp_difference_max"
"""The one metric that is a maximum over micro-batches and ranks; all others are sums."""


class TokenFigures(NamedTuple):
    """What a pass computes about each kept token of a micro-batch, all [M] and detached.

    Attributes:
      current, old: log-probability under the policy of this step, before its update, and under the old policy.
      entropy: entropy of the distribution of the current policy.
      ratio: probability ratio that the loss bounds or weights: of the token, or with GSPO and segment-ratio the one of
        its sequence or segment.
      clipped: bool, whether the loss bounds the token (the distillation: the weight of its segment).
    """

    current: Tensor
    old: Tensor
    entropy: Tensor
    ratio: Tensor
    clipped: Tensor


class Contribution(NamedTuple):
    """What a micro-batch adds to an optimizer batch; contributions add up to its values, except `MAX_METRIC`.

    Attributes:
      loss: 0-d, with gradient.
      metrics: name → 0-d, detached.
      tokens: figures of its kept tokens.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    tokens: TokenFigures


class _LossOfPass(NamedTuple):
    """Loss and metrics as in `Contribution`; ratio and bound of each token as in `TokenFigures`."""

    loss: Tensor
    metrics: dict[str, Tensor]
    ratio: Tensor
    clipped: Tensor


@dataclass(frozen=True)
class Objective:
    """The objective of a policy step (see `maths.losses`).

    Attributes:
      loss: a surrogate over the kept tokens plus β · KL (PPO-clip, also with one ratio for a sequence or a segment,
        CISPO, DPPO, SAPO, Clip-Cov, KL-Cov, likelihood), or the distillation of segment advantages or DPO-positive,
        where β is part of the loss. With DPO-positive, examples 2k and 2k + 1 of a batch are a pair.
      temperature: τ of the distribution that log-probabilities are taken of; the same as in sampling.
      epsilon, epsilon_high: clip range of the ratio; with DPPO, of the difference of probabilities.
      dual_clip: bound of the loss of tokens with A < 0, in |A|; PPO-clip only.
      importance_cap: upper bound of the importance weight if the old log-probabilities are those recorded when
        sampling; None: the trainer computed them.
      correction, correction_level, correction_cap: weights of the token losses for the mismatch between sampler and
        trainer; None: no weights.
      entropy_bonus: weight of the mean entropy over the kept tokens, which the loss rewards.
      cov_fraction: share of the tokens that Clip-Cov and KL-Cov restrain.
      kl_cov_weight: weight of the penalty of KL-Cov.
      pair_penalty: λ of DPO-positive.
      beta, kl: β, and the estimator of the KL divergence to the reference policy.
      kl_normalization: the KL of a sequence is a sum (`losses.kl_loss`), or the KL of a token is divided like its loss.
      normalization, constant: how token losses are summed (`losses.token_divisors`); not for distillation.
      whiten: whiten advantages over the kept tokens of the optimizer batch, of each micro-batch (as the code released
        with the paper does), or not at all.
      max_ratio: a batch with a mean ratio above this is skipped.
    """

    loss: Loss = "ppo"
    temperature: float = 1.0
    epsilon: float = 0.2
    epsilon_high: float | None = None
    importance_cap: float | None = None
    dual_clip: float | None = None
    correction: surrogates.Correction | None = None
    correction_level: surrogates.CorrectionLevel = "token"
    correction_cap: float = TRUNCATION_CAP
    entropy_bonus: float = 0.0
    cov_fraction: float = covariance_losses.FRACTION
    kl_cov_weight: float = 1.0
    pair_penalty: float = preferences.PENALTY
    beta: float = 0.0
    kl: losses.KLKind = "k3"
    kl_normalization: losses.KLNormalization = "sequence-sum"
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
) -> Contribution:
    """Return the contribution of a micro-batch to the batch's loss and metrics, and the figures of its tokens.

    Metrics are means over the kept tokens of the batch unless their name says otherwise.
    """
    current, entropy = scored
    old = stored_or_current_logprobs(current, group.examples, [example.old for example in group.examples])
    reference = None
    if objective.beta:
        stored = [example.reference for example in group.examples]
        reference = stored_or_current_logprobs(current, group.examples, stored)
    loss, metrics, ratio, clipped = _LOSSES[objective.loss](
        objective, group, _LogProbs(current, old, reference), totals
    )
    mean_entropy = entropy.sum() / totals.tokens
    if objective.entropy_bonus:
        loss = loss - objective.entropy_bonus * mean_entropy
    metrics = {"loss": loss.detach(), "entropy": mean_entropy.detach()} | metrics
    if totals.compared:
        metrics |= _compare_to_sampler(objective, group.examples, current.detach(), old, totals)
    return Contribution(loss, metrics, TokenFigures(current.detach(), old, entropy.detach(), ratio, clipped))


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
    sampler = _recorded(examples, current)
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


def _recorded(examples: list[Example], like: Tensor) -> Tensor:
    """Return the log-probabilities [M] that the sampler recorded; NaN where none are given."""
    recorded = [np.full(one.kept.size, np.nan) if one.sampled is None else one.sampled for one in examples]
    return torch.from_numpy(np.concatenate(recorded)).to(like)


def _policy(objective: Objective, group: MicroBatchExamples, logprobs: _LogProbs, totals: BatchTotals) -> _LossOfPass:
    """Return the contribution of a loss over tokens, with the KL term."""
    token_losses, sums = _surrogate(objective, group, logprobs)
    weights = _correction(objective, group, logprobs)
    if weights is not None:
        token_losses = token_losses * weights
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
    if weights is not None:
        metrics["mismatch/weight_mean"] = weights.sum() / totals.tokens
    if logprobs.reference is not None:
        kls = losses.kl_estimate(logprobs.current, logprobs.reference, objective.kl)
        if objective.kl_normalization == "tokens":
            loss = loss + losses.policy_loss(objective.beta * kls, divisors)
        else:
            loss = loss + losses.kl_loss(kls, totals.sequences, objective.beta)
        metrics["kl"] = kls.detach().sum() / totals.tokens
    return _LossOfPass(loss, metrics, sums.token_ratio, sums.token_clipped)


def _surrogate(
    objective: Objective, group: MicroBatchExamples, logprobs: _LogProbs
) -> tuple[Tensor, losses.PolicySums]:
    """Return the loss of each kept token [M], and sums for logging."""
    current, old, name = logprobs.current, logprobs.old, objective.loss
    advantages = torch.from_numpy(np.ascontiguousarray(group.advantages)).to(current)
    low = objective.epsilon
    high = low if objective.epsilon_high is None else objective.epsilon_high
    if name == "cispo":
        return surrogates.cispo(current, old, advantages, low, high)
    if name == "dppo":
        return surrogates.dppo(current, old, advantages, low, high)
    if name == "sapo":
        return surrogates.sapo(current, old, advantages)
    if name == "nll":
        return surrogates.nll(current, old, advantages)
    if name == "clip-cov":
        return covariance_losses.clip_cov(current, old, advantages, low, high, objective.cov_fraction)
    if name == "kl-cov":
        return covariance_losses.kl_cov(current, old, advantages, objective.cov_fraction, objective.kl_cov_weight)
    if name in ("gspo", "segment-ratio"):
        members, count = _sequences(group) if name == "gspo" else _segments(group)
        old = surrogates.shared_ratio(current, old, members.to(current.device), count)
    return losses.ppo_clip(current, old, advantages, low, high, objective.importance_cap, objective.dual_clip)


def _correction(objective: Objective, group: MicroBatchExamples, logprobs: _LogProbs) -> Tensor | None:
    """Return the weight [M] of each kept token for the mismatch between sampler and trainer; None: no correction."""
    if objective.correction is None:
        return None
    sequence, count = _sequences(group)
    return surrogates.correction_weights(
        logprobs.old,
        _recorded(group.examples, logprobs.old),
        sequence.to(logprobs.old.device),
        count,
        objective.correction,
        objective.correction_level,
        objective.correction_cap,
    )


def _sequences(group: MicroBatchExamples) -> tuple[Tensor, int]:
    """Return the example of each kept token [M], and the number of examples."""
    lengths = [example.kept.size for example in group.examples]
    return torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)), len(lengths)


def _segments(group: MicroBatchExamples) -> tuple[Tensor, int]:
    """Return the segment of each kept token [M], and the number of segments."""
    starts = _segment_starts(group)
    lengths = np.diff(starts, append=sum(example.kept.size for example in group.examples))
    return torch.from_numpy(np.repeat(np.arange(starts.size), lengths)), starts.size


def _segment_starts(group: MicroBatchExamples) -> NDArray[np.int64]:
    """Return [S] indices into the kept tokens of a micro-batch: where each segment starts."""
    lengths = [example.kept.size for example in group.examples]
    firsts = np.repeat(np.cumsum([0, *lengths[:-1]]), [example.segment_starts.size for example in group.examples])
    return firsts + np.concatenate([example.segment_starts for example in group.examples])


def _distill(objective: Objective, group: MicroBatchExamples, logprobs: _LogProbs, totals: BatchTotals) -> _LossOfPass:
    current, old, reference = logprobs.current, logprobs.old, logprobs.reference
    assert reference is not None, "the distillation loss has beta > 0"
    segment = _segments(group)[0].to(current.device)
    segment_losses, sums = losses.distillation_loss(
        current,
        old,
        reference,
        segment,
        torch.from_numpy(group.advantages[_segment_starts(group)]).to(
            current
        ),  # all tokens of a segment have one advantage
        objective.beta,
    )
    loss = losses.policy_loss(segment_losses, totals.segments)
    with torch.no_grad():
        ratio = _token_ratio(logprobs)
        kl = losses.kl_estimate(current, reference, objective.kl).sum()
    metrics = {
        "ratio/mean": ratio.sum() / totals.tokens,
        "kl": kl / totals.tokens,
        "distill/weight_mean": sums.weight / totals.segments,
        "distill/weight_clipped": sums.weight_clipped / totals.segments,
        "distill/log_ratio_mean": sums.log_ratio / totals.segments,
    }
    return _LossOfPass(loss, metrics, ratio, sums.segment_clipped[segment])


def _dpo_positive(
    objective: Objective, group: MicroBatchExamples, logprobs: _LogProbs, totals: BatchTotals
) -> _LossOfPass:
    """Return the contribution of the pairs of a micro-batch: an example with a positive advantage is the right one."""
    current, reference = logprobs.current, logprobs.reference
    assert reference is not None, "the loss of pairs has beta > 0"
    sequence, count = _sequences(group)
    ratio = current.new_zeros(count).index_add(0, sequence.to(current.device), current - reference)
    pair = torch.from_numpy(np.unique(np.array(group.indices) // 2, return_inverse=True)[1]).to(current.device)
    is_right = torch.tensor([bool(one.advantages[0] > 0) for one in group.examples], device=current.device)
    zeros = current.new_zeros(int(pair.max()) + 1)
    right = zeros.index_add(0, pair[is_right], ratio[is_right])
    wrong = zeros.index_add(0, pair[~is_right], ratio[~is_right])
    pairs = totals.sequences / 2
    loss = losses.policy_loss(preferences.dpo_positive(right, wrong, objective.beta, objective.pair_penalty), pairs)
    with torch.no_grad():
        moved = _token_ratio(logprobs)
        kl = losses.kl_estimate(current, reference, objective.kl).sum()
        metrics = {
            "ratio/mean": moved.sum() / totals.tokens,
            "kl": kl / totals.tokens,
            "pairs/right_log_ratio_mean": right.sum() / pairs,
            "pairs/wrong_log_ratio_mean": wrong.sum() / pairs,
            "pairs/right_lowered": (right < 0).sum().to(current) / pairs,
        }
    return _LossOfPass(loss, metrics, moved, torch.zeros_like(moved, dtype=torch.bool))


@torch.no_grad()
def _token_ratio(logprobs: _LogProbs) -> Tensor:
    """Return π_θ/π_old of each kept token, limited as in `maths.losses`: [M]."""
    return (logprobs.current - logprobs.old).clamp(-losses.LOG_RATIO_LIMIT, losses.LOG_RATIO_LIMIT).exp()


_LOSSES: dict[Loss, Callable[[Objective, MicroBatchExamples, _LogProbs, BatchTotals], _LossOfPass]] = {
    **dict.fromkeys(("ppo", "gspo", "segment-ratio", "cispo", "dppo", "sapo", "clip-cov", "kl-cov", "nll"), _policy),
    "distill": _distill,
    "dpo-positive": _dpo_positive,
}
