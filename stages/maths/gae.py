"""Compute generalized advantages (GAE) and the clipped value loss of PPO with a critic.

A trajectory is a row of steps: single tokens under the partition `token`, segments otherwise. γ and λ apply once per
step. The value of a step is V of the state in which the step begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.maths.ragged import Ragged


class GeneralizedAdvantages(NamedTuple):
    """Hold the advantages of the steps of all trajectories, end to end, V steps in total.

    Attributes:
      advantage: [V] float64, Â_t.
      returns: [V] float64, Â_t + V(s_t), the TD(λ) return: the target of the critic for s_t.
    """

    advantage: NDArray[np.float64]
    returns: NDArray[np.float64]


def generalized_advantages(
    values: Ragged, rewards: Ragged, gamma: float = 1.0, lam: float = 0.95
) -> GeneralizedAdvantages:
    """Compute GAE(γ, λ) of N complete trajectories (arXiv 1506.02438, equation 16).

        δ_t = r_t + γ V(s_{t+1}) − V(s_t)        V of the state after the last step = 0
        Â_t = Σ_l (γλ)^l δ_{t+l} = δ_t + γλ Â_{t+1}

    For λ = 0, Â_t is the one-step error δ_t. For λ = 1, it is the (discounted) sum of the rewards from t on, minus
    V(s_t).

    Args:
      values: N ragged rows of V(s_t), t from 0.
      rewards: N ragged rows of r_t, of the same lengths.
      gamma, lam: γ and λ, each from 0 to 1.

    Raises:
      ValueError: the rows have different lengths, a number is not finite, or γ or λ is out of range.
    """
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise ValueError(f"expected gamma and lam from 0 to 1; got {gamma} and {lam}")
    lengths = values.lengths
    if not np.array_equal(lengths, rewards.lengths):
        raise ValueError("expected as many rewards as values in every row")
    value, reward = values.flat.astype(np.float64), rewards.flat.astype(np.float64)
    if not (np.isfinite(value).all() and np.isfinite(reward).all()):
        raise ValueError("every value and every reward must be finite")

    ends = np.cumsum(lengths)
    following = np.append(value[1:], 0.0)[: value.size]
    following[ends[lengths > 0] - 1] = 0.0
    advantage = reward + gamma * following - value
    # The recursion runs backwards through all trajectories at once: one vectorized step for each distance from the end.
    # With the longest rows first, the rows longer than `distance` are the first `rows` of them.
    longest_first = np.argsort(-lengths, kind="stable")
    row_counts = np.searchsorted(-lengths[longest_first], -np.arange(lengths.max(initial=0)), side="left")
    for distance, rows in enumerate(row_counts.tolist()):
        if distance:
            at = ends[longest_first[:rows]] - 1 - distance
            advantage[at] += gamma * lam * advantage[at + 1]
    return GeneralizedAdvantages(advantage, advantage + value)


@dataclass(frozen=True)
class ValueSums:
    """Hold sums over the states of a micro-batch, each 0-d and detached.

    The sums of micro-batches and ranks add up; divide the totals by the number of states for means.

    Attributes:
      value: sum of V.
      error: sum of V − return.
      squared_error: sum of (V − return)².
      clipped: number of states whose loss is the clipped branch.
    """

    value: Tensor
    error: Tensor
    squared_error: Tensor
    clipped: Tensor


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, states: int | float, clip: float | None = 0.2
) -> tuple[Tensor, ValueSums]:
    """Return the contribution of a micro-batch to the clipped value loss of the batch (arXiv 1707.06347; 2005.12729).

        ℓ_t = ½ max( (V_t − G_t)², (clip(V_t, V_old ± c) − G_t)² )        contribution = Σ_t ℓ_t / states

    Args:
      values: [M] floating, V_t of the current critic, with gradient; M may be 0.
      old_values: [M], V_old of the critic that computed the advantages.
      returns: [M], G_t.
      states: number of states in the whole optimizer batch (all micro-batches and ranks).
      clip: c, above 0; None for the squared error without clipping.

    Returns:
      The contribution (0-d), and sums for logging.

    Raises:
      ValueError: the shapes differ or are not [M], `states` is less than M, or c is not positive.
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
        clipped_values = values.clamp(old_values - clip, old_values + clip)
        worst = torch.maximum(squared, (clipped_values - returns).square())
    with torch.no_grad():
        sums = ValueSums(values.sum(), (values - returns).sum(), squared.sum(), (worst > squared).sum())
    return 0.5 * worst.sum() / max(states, 1), sums  # without states the sum is 0 and still differentiable
