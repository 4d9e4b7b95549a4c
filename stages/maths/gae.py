"""Owns PPO with a critic: rewards with a KL penalty, generalised advantages (GAE), the clipped loss of the values.

A trajectory is a row of steps: single tokens under the partition `token`, else segments; γ and λ act once a step. The
value of a step is V of the state in which it begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.maths.losses import kl_estimate
from stages.maths.ragged import Ragged

Penalty = Literal["k1", "k2", "k3", "abs"]


class GeneralizedAdvantages(NamedTuple):
    """Of all steps, flat and in order, each float64 [V].

    Attributes:
      advantage: Â_t.
      returns: Â_t + V(s_t), the TD(λ) return: what the critic is to say of s_t.
    """

    advantage: NDArray[np.float64]
    returns: NDArray[np.float64]


def generalized_advantages(
    values: Ragged, rewards: Ragged, gamma: float = 1.0, lam: float = 0.95
) -> GeneralizedAdvantages:
    """GAE(γ, λ) of N trajectories, each of which ends (arXiv 1506.02438, equation 16).

        δ_t = r_t + γ V(s_{t+1}) − V(s_t)        V of the state after the last step = 0
        Â_t = Σ_l (γλ)^l δ_{t+l} = δ_t + γλ Â_{t+1}

    λ = 0 is the one-step error δ_t; λ = 1 is what was earned from there on, less V(s_t).

    Args:
      values: N ragged rows of V(s_t), t from 0.
      rewards: N ragged rows of r_t, of the same lengths.
      gamma, lam: γ and λ, each from 0 to 1.

    Raises:
      ValueError: rows of other lengths, a number that is not finite, γ or λ out of range.
    """
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise ValueError(f"expected gamma and lam from 0 to 1; got {gamma} and {lam}")
    lengths = values.lengths
    if not np.array_equal(lengths, rewards.lengths):
        raise ValueError("expected one reward per value, row by row")
    value, reward = values.flat.astype(np.float64), rewards.flat.astype(np.float64)
    if not (np.isfinite(value).all() and np.isfinite(reward).all()):
        raise ValueError("every value and every reward must be finite")

    ends = np.cumsum(lengths)
    following = np.append(value[1:], 0.0)[: value.size]
    following[ends[lengths > 0] - 1] = 0.0
    advantage = reward + gamma * following - value
    longest_first = np.argsort(-lengths, kind="stable")
    reaching = np.searchsorted(-lengths[longest_first], -np.arange(lengths.max(initial=0)), side="left")
    for back, rows in enumerate(reaching.tolist()):  # every row that is long enough, `back` steps before its end
        if back:
            at = ends[longest_first[:rows]] - 1 - back
            advantage[at] += gamma * lam * advantage[at + 1]
    return GeneralizedAdvantages(advantage, advantage + value)


def penalised_rewards(
    scores: Tensor, lengths: Tensor, logprobs: Tensor, ref_logprobs: Tensor, beta: float, kind: Penalty = "k1"
) -> Tensor:
    """Rewards of single tokens where the KL to the reference is paid for as it is run up (arXiv 1909.08593).

        r_t = − β · KL_t        and the score is added at the last token of each response

    KL_t is the estimate of `losses.kl_estimate`; `abs` is |k1|.

    Args:
      scores: [N] of the whole responses.
      lengths: int64 [N], tokens of each response, at least 1; they sum to V.
      logprobs, ref_logprobs: [V] of the sampled tokens, all responses end to end, by policy and reference.
      beta: weight of the penalty.

    Returns:
      [V].

    Raises:
      ValueError: shapes that do not fit, a response without a token.
    """
    if scores.shape != lengths.shape or lengths.ndim != 1 or bool((lengths < 1).any()):
        raise ValueError(f"expected scores [N] and lengths [N] of at least 1; got {scores.shape} and {lengths.shape}")
    if int(lengths.sum()) != logprobs.numel():
        raise ValueError(
            f"expected {int(lengths.sum())} log-probabilities, the sum of the lengths; got {logprobs.shape}"
        )
    kls = (
        kl_estimate(logprobs, ref_logprobs, "k1").abs() if kind == "abs" else kl_estimate(logprobs, ref_logprobs, kind)
    )
    return (-beta * kls).index_add(0, lengths.cumsum(0) - 1, scores.to(kls))


@dataclass(frozen=True)
class ValueSums:
    """Sums over the states of one micro-batch, 0-d and detached; divide the batch's total by its states for means.

    Attributes:
      value: of V.
      error, squared_error: of V − return, and of its square.
      clipped: states whose loss is the clipped branch.
    """

    value: Tensor
    error: Tensor
    squared_error: Tensor
    clipped: Tensor


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, states: int | float, clip: float | None = 0.2
) -> tuple[Tensor, ValueSums]:
    """A micro-batch's share of the batch's mean value loss, clipped as the policy's is (arXiv 1707.06347; 2005.12729).

        ℓ_t = ½ max( (V_t − G_t)², (clip(V_t, V_old ± c) − G_t)² )        share = Σ_t ℓ_t / states

    Args:
      values: [M] floating, of the critic as it is, with gradient.
      old_values: [M], of the critic that the advantages were made with.
      returns: [M] G_t.
      states: states of the whole optimiser batch, all micro-batches and ranks.
      clip: c, above 0; None: the squared error alone.

    Returns:
      The share (0-d; M may be 0), and the sums of what is worth watching.

    Raises:
      ValueError: shapes differ or are not [M], fewer states than are given here, c not positive.
    """
    shapes = [tuple(tensor.shape) for tensor in (values, old_values, returns)]
    if values.ndim != 1 or len(set(shapes)) != 1 or not values.is_floating_point():
        raise ValueError(f"expected floating tensors of one shape [M]; got {values.dtype} and shapes {shapes}")
    if states < values.numel() or (clip is not None and clip <= 0):
        raise ValueError(
            f"expected at least {values.numel()} states in all and a clip above 0; got {states} and {clip}"
        )
    squared = worst = (values - returns).square()
    if clip is not None:
        near = values.clamp(old_values - clip, old_values + clip)
        worst = torch.maximum(squared, (near - returns).square())
    with torch.no_grad():
        sums = ValueSums(values.sum(), (values - returns).sum(), squared.sum(), (worst > squared).sum())
    return 0.5 * worst.sum() / max(states, 1), sums
