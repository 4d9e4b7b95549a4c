"""Owns the advantage of a segment: the difference of the values of its two ends, along a chain or among siblings."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.maths.partition import Segments
from stages.maths.ragged import Ragged

Baseline = Literal["mean", "leave-one-out"]
"""What V of a state is the mean of: all that was seen to follow from it, or all but what it is compared with."""

NEGLIGIBLE = 1e-8
"""An advantage of at most this size is the rounding of 0: the segment carries no gradient."""


class Advantages(NamedTuple):
    """Of S segments, each [S] float64: V at the start, V at the end, and what the segment changed."""

    value_start: NDArray[np.float64]
    value_end: NDArray[np.float64]
    advantage: NDArray[np.float64]


def states_to_estimate(start: NDArray[np.integer], cutpoints: Ragged | None) -> NDArray[np.bool_]:
    """Which segments' start states need a value.

    Under the cutpoint partition nothing before the first cutpoint can diverge, so V(prompt) is wanted only where the
    first token is a cutpoint (arXiv 2505.23564, SPO-chain). Every other partition wants every start.

    Args:
      start: [S] the token at which each segment begins, 0 for the first of a response; in any order.
      cutpoints: S ragged rows of token offsets (`segment_cutpoints`) if the cutpoints made the partition, else None.

    Returns:
      [S] bool.

    Raises:
      ValueError: not one row of cutpoints per segment.
    """
    if cutpoints is None:
        return np.ones(start.size, np.bool_)
    if len(cutpoints) != start.size:
        raise ValueError(f"expected cutpoints of {start.size} segments; got {len(cutpoints)}")
    wanted = start > 0
    holds_any = cutpoints.lengths > 0
    first_cutpoint = cutpoints.values[cutpoints.offsets[:-1][holds_any]]
    wanted[holds_any] |= first_cutpoint == start[holds_any]
    return wanted


def chain_advantages(segments: Segments, state_value: ArrayLike, reward: ArrayLike) -> Advantages:
    """A(segment) = V(end) − V(start); V(end) is V at the next segment's start, and R at the response's end.

    (arXiv 2505.23564, chain-based estimation.) A trajectory's first start state may be left unestimated, NaN: the
    policy is nearly certain of the stretch, so V there is V at its end and the advantage is 0. The advantages of a
    trajectory sum to R − V(first estimated state).

    Args:
      segments: S segments of N trajectories.
      state_value: [S] V̂ of each start state; NaN only where a segment begins its trajectory.
      reward: [N] R of each trajectory.

    Raises:
      ValueError: shapes that do not fit, NaN elsewhere, an infinity.
    """
    value, reward = np.asarray(state_value, np.float64), np.asarray(reward, np.float64)
    is_first, is_last = segments.is_first, segments.is_last
    if value.shape != (len(segments),) or reward.shape != (np.count_nonzero(is_last),):
        raise ValueError(
            f"expected values of {len(segments)} segments and rewards of {np.count_nonzero(is_last)} trajectories;"
            f" got {value.shape} and {reward.shape}"
        )
    unestimated = np.flatnonzero(~np.isfinite(value))
    if not (np.isfinite(reward).all() and np.isnan(value[unestimated]).all() and is_first[unestimated].all()):
        raise ValueError("values and rewards must be finite; only a trajectory's first state may be unestimated (NaN)")

    value_end = np.empty_like(value)
    value_end[:-1] = value[1:]
    value_end[is_last] = reward
    value_start = value.copy()
    value_start[unestimated] = value_end[unestimated]
    return Advantages(value_start, value_end, value_end - value_start)


def sibling_advantages(
    values: ArrayLike, groups: ArrayLike, *, baseline: Baseline = "mean", scale: bool = False
) -> Advantages:
    """A_i = V_i − b: what each branch of a state is better than its siblings, b standing for V of the state itself.

    b is the mean over the group (arXiv 2505.23564, SPO-tree: V of a node is the mean of its children's), or the mean of
    the *other* members, which does not hold V_i itself and so leaves the policy gradient unbiased (arXiv 2402.14740). A
    group of one has no others: its baseline is then 0, plain REINFORCE, as in that method's released code.

    Args:
      values: [N] finite. groups: [N] of anything that sorts; equal values are one group, in any order.
      scale: divides by the group's population std + 10⁻⁸; values that lie closer than that are taken for equal.

    Returns:
      [N] each: b, V_i, A_i. Equal values deviate from their mean by exactly 0.

    Raises:
      ValueError: shapes differ or are not [N], or a value is not finite.
    """
    values, groups = np.asarray(values, np.float64), np.asarray(groups)
    if values.ndim != 1 or values.shape != groups.shape or not np.isfinite(values).all():
        raise ValueError(f"expected finite values [N] and groups [N]; got {values.shape} and {groups.shape}")
    _, first, group, count = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    # Measured from a member, so that equal values deviate by exactly 0 and not by a rounding error over 10⁻⁸.
    origin = values[first]
    above = _sum_in(group, values - origin[group], count) / count
    deviation = values - origin[group] - above[group]
    if baseline == "mean":
        start, advantage = (origin + above)[group], deviation
    else:  # V_i − (n·mean − V_i)/(n − 1) = n/(n − 1) · (V_i − mean)
        others = count[group] - 1
        advantage = np.where(others > 0, deviation * count[group] / np.maximum(others, 1), values)
        start = values - advantage
    if scale:
        std = np.sqrt(_sum_in(group, np.square(deviation), count) / count)[group]
        advantage = np.where(std > 1e-8, advantage / (std + 1e-8), 0.0)  # less is rounding, which it would blow up
    return Advantages(start, values, advantage)


def leave_own_reward_out(of: Advantages, reward: ArrayLike, count: ArrayLike) -> Advantages:
    """Leaves a response's own reward out of the value that its segment starts from: (n·V − R) / (n − 1).

    A state that no other response passed through has no such value: V at the segment's end stands for it, and the
    advantage is 0.

    Args:
      of: [S] each; `value_start` is the mean reward of the responses that pass through the state.
      reward: [S] of the response that the segment belongs to. count: [S] responses that pass, itself among them.
    """
    reward, count = np.asarray(reward, np.float64), np.asarray(count)
    others = (count * of.value_start - reward) / np.maximum(count - 1, 1)
    start = np.where(count > 1, others, of.value_end)
    return Advantages(start, of.value_end, of.value_end - start)


def grpo(rewards: ArrayLike, groups: ArrayLike) -> Advantages:
    """A_i = (R_i − mean) / (std + 10⁻⁸), over the responses to one question, population std (arXiv 2402.03300).

    Arguments, result and errors as in `siblings`; a group of one gets 0.
    """
    return sibling_advantages(rewards, groups, scale=True)


def rloo(rewards: ArrayLike, groups: ArrayLike) -> Advantages:
    """A_i = R_i − mean of the group's *other* rewards (arXiv 2402.14740). As `siblings`."""
    return sibling_advantages(rewards, groups, baseline="leave-one-out")


def dr_grpo(rewards: ArrayLike, groups: ArrayLike) -> Advantages:
    """A_i = R_i − mean: without the std, which weighs easy and hard questions up (arXiv 2503.20783). As `siblings`."""
    return sibling_advantages(rewards, groups)


def _sum_in(group: NDArray[np.int64], values: NDArray[np.float64], count: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.bincount(group, values, count.size).astype(np.float64)
