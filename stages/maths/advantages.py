"""Compute the advantages of segments: along a chain of segments, among sibling nodes, and within a group of responses.

The advantage of a segment is the value of the state at its end minus the value of the state at its start. The methods
differ in how they estimate these values. A reward or value of NaN is unknown: the response could not be graded. It is
left out of every mean, and a segment that would need it has the advantage NaN, so that it is not trained on.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.maths.partition import Segments
from stages.maths.ragged import Ragged

Baseline = Literal["mean", "leave-one-out"]
"""The baseline of a group member: the mean of all members, or the mean of the other members."""

NEGLIGIBLE = 1e-8
"""Advantages of at most this absolute value are rounding errors of 0; such a segment is not trained on."""

_STD_EPSILON = 1e-8
"""Added to a standard deviation before a division, as in the released code; smaller ones count as 0."""


class Advantages(NamedTuple):
    """Hold the advantages of S segments.

    Attributes:
      value_start: [S] float64, V of the state at the start of each segment.
      value_end: [S] float64, V of the state at its end.
      advantage: [S] float64.
    """

    value_start: NDArray[np.float64]
    value_end: NDArray[np.float64]
    advantage: NDArray[np.float64]


def states_to_estimate(start: NDArray[np.integer], cutpoints: Ragged | None) -> NDArray[np.bool_]:
    """Return which start states of segments need a value estimate.

    Under the cutpoint partition the tokens before the first cutpoint are nearly certain, so V(prompt) is needed only
    if the first token is a cutpoint (arXiv 2505.23564, SPO-chain). Any other partition needs every start state.

    Args:
      start: [S] int, token offset at which each segment begins (0 for the first of a response), in any order.
      cutpoints: S ragged rows of token offsets (`segment_cutpoints`) under the cutpoint partition, else None.

    Returns:
      [S] bool.

    Raises:
      ValueError: the number of cutpoint rows is not S.
    """
    if cutpoints is None:
        return np.ones(start.size, np.bool_)
    if len(cutpoints) != start.size:
        raise ValueError(f"expected cutpoints of {start.size} segments; got {len(cutpoints)}")
    needs_value = start > 0
    has_cutpoint = cutpoints.lengths > 0
    first_cutpoint = cutpoints.values[cutpoints.offsets[:-1][has_cutpoint]]
    needs_value[has_cutpoint] |= first_cutpoint == start[has_cutpoint]
    return needs_value


def chain_advantages(
    segments: Segments, state_value: ArrayLike, reward: ArrayLike, needs_value: NDArray[np.bool_] | None = None
) -> Advantages:
    """Return the advantages of the segments of trajectories (arXiv 2505.23564, chain-based estimation).

        A(segment) = V(end) − V(start)        V(end) = V(start of the next segment), or R at the end of the response

    Where the first start state of a trajectory needs no value (see `states_to_estimate`) and has none, the policy is
    nearly certain of that segment: V(start) is set to V(end), and the advantage is 0. The advantages of a trajectory
    sum to R − V(first estimated state).

    Any other value of NaN is unknown, because no rollout from the state could be graded: the two segments that it
    separates have the advantage NaN. So have all segments of a trajectory whose reward is NaN.

    Args:
      segments: S segments of N trajectories.
      state_value: [S] estimated V of each start state, or NaN.
      reward: [N] R of each trajectory, or NaN.
      needs_value: [S] which start states need a value; None: all.

    Raises:
      ValueError: the shapes do not match, or a value or reward is infinite.
    """
    value, reward = np.asarray(state_value, np.float64), np.asarray(reward, np.float64)
    is_first, is_last = segments.is_first, segments.is_last
    if value.shape != (len(segments),) or reward.shape != (np.count_nonzero(is_last),):
        raise ValueError(
            f"expected a value for each of {len(segments)} segments and a reward for each of"
            f" {np.count_nonzero(is_last)} trajectories;"
            f" got {value.shape} and {reward.shape}"
        )
    unknown = np.flatnonzero(~np.isfinite(value))
    if np.isinf(value[unknown]).any() or np.isinf(reward).any():
        raise ValueError("values and rewards must be finite, or NaN where they are unknown")

    value_end = np.empty_like(value)
    value_end[:-1] = value[1:]
    value_end[is_last] = reward
    value_start = value.copy()
    if needs_value is not None:
        nearly_certain = unknown[is_first[unknown] & ~needs_value[unknown]]
        value_start[nearly_certain] = value_end[nearly_certain]
    advantage = value_end - value_start
    if np.isnan(reward).any():
        segment_count = np.diff(np.flatnonzero(np.append(is_first, True)))
        advantage[np.repeat(np.isnan(reward), segment_count)] = np.nan
    return Advantages(value_start, value_end, advantage)


def sibling_advantages(
    values: ArrayLike, groups: ArrayLike, *, baseline: Baseline = "mean", scale: bool = False
) -> Advantages:
    """Return the advantage of each group member, A_i = V_i − b_i, where b_i estimates V of the common parent state.

    With baseline "mean", b_i is the mean of the group (arXiv 2505.23564, SPO-tree: V of a node is the mean of the
    values of its children). With "leave-one-out", b_i is the mean of the *other* members; it does not depend on V_i, so
    the policy gradient stays unbiased (arXiv 2402.14740). The only member of a group has nothing to be compared with:
    b_i is its own value under either baseline, and A_i is 0.

    A member whose value is NaN, unknown, belongs to no group; its b_i, V_i and A_i are NaN.

    Args:
      values: [N] finite, or NaN.
      groups: [N] of any sortable type; members with equal entries form a group, in any order.
      baseline: "mean" or "leave-one-out".
      scale: whether to divide A_i by the population standard deviation of the group plus 10⁻⁸. If the standard
        deviation is at most 10⁻⁸, A_i is 0.

    Returns:
      [N] each: b_i, V_i and A_i. If all values of a group are equal, its A_i are exactly 0.

    Raises:
      ValueError: the shapes differ or are not [N], or a value is not finite.
    """
    values, groups = np.asarray(values, np.float64), np.asarray(groups)
    if values.ndim != 1 or values.shape != groups.shape or np.isinf(values).any():
        raise ValueError(f"expected values [N], finite or NaN, and groups [N]; got {values.shape} and {groups.shape}")
    known = ~np.isnan(values)
    result = Advantages(*np.full((3, values.size), np.nan))
    for whole, part in zip(result, _compare_siblings(values[known], groups[known], baseline, scale), strict=True):
        whole[known] = part
    return result


def _compare_siblings(values: NDArray[np.float64], groups: NDArray, baseline: Baseline, scale: bool) -> Advantages:
    """Return `sibling_advantages` of values [N] that are all finite."""
    _, first, group, count = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    # Subtract a member of the group before averaging: equal values then deviate by exactly 0. A rounding error would
    # otherwise be divided by a standard deviation of the same size.
    origin = values[first]
    mean_offset = _group_sums(group, values - origin[group], count) / count
    deviation = values - origin[group] - mean_offset[group]
    if baseline == "mean":
        start, advantage = (origin + mean_offset)[group], deviation
    else:  # V_i − (n·mean − V_i)/(n − 1) = n/(n − 1) · (V_i − mean)
        advantage = deviation * count[group] / np.maximum(count[group] - 1, 1)
        start = values - advantage
    if scale:
        std = np.sqrt(_group_sums(group, np.square(deviation), count) / count)[group]
        advantage = np.where(std > _STD_EPSILON, advantage / (std + _STD_EPSILON), 0.0)
    return Advantages(start, values, advantage)


def restem(rewards: ArrayLike, groups: ArrayLike, threshold: float = 1.0, most: int = 10) -> Advantages:
    """Select the responses that ReST-EM trains on (arXiv 2312.06585): those with a reward of at least the threshold.

        A_i = 1 for the first `most` members of a group with R_i ≥ threshold, else 0

    Args:
      rewards, groups: [N] as in `sibling_advantages`.
      most: at least 1; the paper takes 10 for MATH, so that easy questions do not dominate.

    Returns:
      [N] each: the mean reward of the group, R_i, and A_i; NaN where the reward is unknown.
    """
    if most < 1:
        raise ValueError(f"expected at least one response per group; got {most}")
    start, end, _ = sibling_advantages(rewards, groups)
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    good = end >= threshold  # False for NaN
    chosen = good & (_rank_within(group, good) <= most)
    return Advantages(start, end, np.where(np.isnan(end), np.nan, chosen.astype(np.float64)))


def pairs(rewards: ArrayLike, groups: ArrayLike, threshold: float = 1.0, most: int = 8) -> Advantages:
    """Pair the responses of each group: the first right one with the first wrong one, and so on.

        A_i = 1 if R_i ≥ threshold, else −1, for the first P right and the first P wrong members of a group; else 0
        P = min(number of right members, number of wrong members, most)

    A response is in one pair at most. The code of VinePPO (arXiv 2410.01679) draws from all pairs of a right and a
    wrong response instead, so that a response may be in several.

    Args:
      rewards, groups: [N] as in `sibling_advantages`.
      most: at least 1; VinePPO has 8 and 64.

    Returns:
      [N] each: the mean reward of the group, R_i, and A_i; NaN where the reward is unknown.
    """
    if most < 1:
        raise ValueError(f"expected at least one pair per group; got {most}")
    start, end, _ = sibling_advantages(rewards, groups)
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    right, wrong = end >= threshold, end < threshold  # both False for NaN
    number = np.minimum(np.bincount(group[right], minlength=group.max(initial=-1) + 1), most)
    number = np.minimum(number, np.bincount(group[wrong], minlength=number.size))[group]
    sign = np.where(right & (_rank_within(group, right) <= number), 1.0, 0.0)
    sign -= wrong & (_rank_within(group, wrong) <= number)
    return Advantages(start, end, np.where(np.isnan(end), np.nan, sign))


def _rank_within(group: NDArray[np.integer], member: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the rank of each member within its group, from 1, in the order of the rows; others have no meaning."""
    order = np.argsort(group, kind="stable")
    counted = np.cumsum(member[order])
    before = np.concatenate([[0], counted])[np.searchsorted(group[order], group[order])]
    rank = np.empty(group.size, np.int64)
    rank[order] = counted - before
    return rank


def leave_own_reward_out(advantages: Advantages, reward: ArrayLike, count: ArrayLike) -> Advantages:
    """Remove the reward of a segment's own response from V(start): (n·V − R) / (n − 1), the leave-one-out baseline.

    A start state that no other response passes through has no such value. V(start) is then set to V(end), so that the
    advantage is 0.

    Args:
      advantages: [S] each; `value_start` is the mean reward of the n responses that pass through the state.
      reward: [S] R of the response that each segment belongs to, NaN where it is unknown.
      count: [S] n, the response itself included.
    """
    reward, count = np.asarray(reward, np.float64), np.asarray(count)
    others = (count * advantages.value_start - reward) / np.maximum(count - 1, 1)
    start = np.where((count > 1) | np.isnan(reward), others, advantages.value_end)
    return Advantages(start, advantages.value_end, advantages.value_end - start)


def tempo(
    branch_term: ArrayLike, response: NDArray[np.integer], rewards: ArrayLike, groups: ArrayLike
) -> NDArray[np.float64]:
    """Return the advantage of each segment under TEMPO (arXiv 2509.18314): the GRPO term plus the branch term.

        A = [ (R_i − mean) + (V(end) − V(start)) ] / (std + 10⁻⁸)        mean and std over the group, V a prefix value

    Where no response branches off, V does not change and A is the advantage of GRPO. With one token per segment, only
    branching tokens have the second term. If the std is at most 10⁻⁸, A is 0.

    Args:
      branch_term: [S] V(end) − V(start) of each segment, NaN where unknown.
      response: [S] the response that each segment belongs to.
      rewards, groups: [N] of each response, as in `sibling_advantages`.

    Returns:
      [S] float64.
    """
    rewards, groups = np.asarray(rewards, np.float64), np.asarray(groups)
    deviation = sibling_advantages(rewards, groups).advantage
    _, group = np.unique(groups, return_inverse=True)
    known = ~np.isnan(deviation)
    size = np.bincount(group, known)
    with np.errstate(invalid="ignore"):
        std = np.sqrt(np.bincount(group, np.where(known, deviation, 0.0) ** 2) / size)[group]
    total = deviation[response] + np.asarray(branch_term, np.float64)
    return np.where(std[response] > _STD_EPSILON, total / (std[response] + _STD_EPSILON), 0.0 * total)


def grpo(rewards: ArrayLike, groups: ArrayLike) -> Advantages:
    """Return A_i = (R_i − mean) / (std + 10⁻⁸) over the responses to a question, population std (arXiv 2402.03300).

    Arguments, result and errors are those of `sibling_advantages`. The only response to a question gets 0.
    """
    return sibling_advantages(rewards, groups, scale=True)


def rloo(rewards: ArrayLike, groups: ArrayLike) -> Advantages:
    """Return A_i = R_i − mean of the *other* rewards of the group (arXiv 2402.14740); see `sibling_advantages`."""
    return sibling_advantages(rewards, groups, baseline="leave-one-out")


def dr_grpo(rewards: ArrayLike, groups: ArrayLike) -> Advantages:
    """Return A_i = R_i − mean (arXiv 2503.20783); see `sibling_advantages`.

    Without the division by the std, questions that are very easy or very hard do not get a larger weight.
    """
    return sibling_advantages(rewards, groups)


def _group_sums(group: NDArray[np.int64], values: NDArray[np.float64], count: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the sum of the values [N] of each group [G]; `count` [G] gives the number of groups."""
    return np.bincount(group, values, count.size).astype(np.float64)
