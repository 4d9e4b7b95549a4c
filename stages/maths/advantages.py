"""Owns the advantage of a segment: the difference of the values of its two ends; and of a group's whole responses."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.maths.partition import Segments
from stages.maths.ragged import Ragged


class Advantages(NamedTuple):
    """Of S segments, each [S] float64: V at the start, V at the end, and what the segment changed."""

    value_start: NDArray[np.float64]
    value_end: NDArray[np.float64]
    advantage: NDArray[np.float64]


def states_to_estimate(segments: Segments, cutpoints: Ragged | None) -> NDArray[np.bool_]:
    """Which segments' start states need a value.

    Under the cutpoint partition nothing before the first cutpoint can diverge, so V(prompt) is wanted only where the
    first token is a cutpoint (arXiv 2505.23564, SPO-chain). Every other partition wants every start.

    Args:
      segments: S segments.
      cutpoints: S ragged rows of token offsets (`segment_cutpoints`) if the cutpoints made the partition, else None.

    Returns:
      [S] bool.

    Raises:
      ValueError: not one row of cutpoints per segment.
    """
    if cutpoints is None:
        return np.ones(len(segments), np.bool_)
    if len(cutpoints) != len(segments):
        raise ValueError(f"expected cutpoints of {len(segments)} segments; got {len(cutpoints)}")
    wanted = ~segments.is_first
    holds_any = cutpoints.lengths > 0
    first_cutpoint = cutpoints.values[cutpoints.offsets[:-1][holds_any]]
    wanted[holds_any] |= first_cutpoint == segments.start[holds_any]
    return wanted


def chain(segments: Segments, state_value: ArrayLike, reward: ArrayLike) -> Advantages:
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


def grpo(rewards: ArrayLike, groups: ArrayLike) -> NDArray[np.float64]:
    """A_i = (R_i − mean) / (std + 10⁻⁸), over the responses to one question, population std (arXiv 2402.03300).

    Args:
      rewards: [N] finite.
      groups: [N] of anything that sorts; equal values are one group, in any order. A group of one gets 0.

    Returns:
      [N] float64.

    Raises:
      ValueError: shapes differ or are not [N], or a reward is not finite.
    """
    deviation, group, count = _deviations(rewards, groups)
    std = np.sqrt(np.bincount(group, np.square(deviation), count.size) / count)
    return deviation / (std[group] + 1e-8)


def rloo(rewards: ArrayLike, groups: ArrayLike) -> NDArray[np.float64]:
    """A_i = R_i − mean of the group's *other* rewards (arXiv 2402.14740).

    A group of one has no others: its baseline is 0, plain REINFORCE, as in the method's released code. Arguments,
    result and errors as in `grpo`.
    """
    deviation, group, count = _deviations(rewards, groups)
    others = count[group] - 1
    # R_i − (n·mean − R_i)/(n − 1) = n/(n − 1) · (R_i − mean)
    return np.where(others > 0, deviation * count[group] / np.maximum(others, 1), np.asarray(rewards, np.float64))


def _deviations(
    rewards: ArrayLike, groups: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """R − mean of its group [N], the group's number [N], and the members of each group [G]."""
    rewards, groups = np.asarray(rewards, np.float64), np.asarray(groups)
    if rewards.ndim != 1 or rewards.shape != groups.shape or not np.isfinite(rewards).all():
        raise ValueError(f"expected finite rewards [N] and groups [N]; got {rewards.shape} and {groups.shape}")
    _, first, group, count = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    # Measured from a member, so that equal rewards deviate by exactly 0 and not by a rounding error over 10⁻⁸.
    shifted = rewards - rewards[first][group]
    return shifted - (np.bincount(group, shifted, count.size) / count)[group], group, count
