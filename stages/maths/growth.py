"""Choose where a tree of responses grows: at the state whose value is least certain, within a budget of tokens.

A tree is given by its R responses. Response r leaves response `parent[r]`, which comes before it, after `offset[r]`
tokens; −1 stands for the prompt. A state is a pair (owner, place): the first `place` tokens of response `owner`. The
prompt is (−1, 0). The leaves of a state are the responses that begin with it: the owner, and those that branch off at
the place or later, with all their own branches.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.maths.intervals import wilson_width


class Leaves(NamedTuple):
    """The leaves of S states.

    Attributes:
      mean: [S] mean reward of the graded leaves; 0 where there is none.
      graded: [S] their number.
      tokens_left: [S] mean number of tokens from the state to the end of a leaf.
    """

    mean: NDArray[np.float64]
    graded: NDArray[np.int64]
    tokens_left: NDArray[np.float64]


def find_leaves(
    parent: NDArray[np.int64],
    offset: NDArray[np.int64],
    length: NDArray[np.int64],
    reward: NDArray[np.float64],
    owner: NDArray[np.int64],
    place: NDArray[np.int64],
) -> Leaves:
    """Return what is known about the leaves of states.

    Args:
      parent, offset: [R] as the module describes.
      length: [R] tokens of each whole response.
      reward: [R], NaN where a response could not be graded.
      owner, place: [S] the states.
    """
    is_graded = ~np.isnan(reward)
    # Of each response, then of the prompt (index −1): leaves, graded ones, the sum of their rewards, their tokens.
    own = np.zeros((parent.size + 1, 4))
    own[:-1] = np.stack([np.ones(parent.size), is_graded, np.where(is_graded, reward, 0), length], axis=1)
    below = own.copy()
    for r in range(parent.size - 1, -1, -1):  # a response comes after the one that it leaves
        if parent[r] >= 0:
            below[parent[r]] += below[r]
    leaves_here = (parent == owner[:, None]) & (offset >= place[:, None])
    count, graded, rewards, tokens = (own[owner] + leaves_here @ below[:-1]).T
    mean = rewards / np.maximum(graded, 1)
    return Leaves(mean, graded.astype(np.int64), tokens / np.maximum(count, 1) - place)


def widest_state(leaves: Leaves, doubt: NDArray[np.float64], budget: float, confidence: float = 0.95) -> int | None:
    """Return the number of the state with the widest Wilson interval of its value, which the next branch leaves.

    A branch is expected to take as many tokens as the leaves of its state have left; states that do not fit are passed
    over. Among equal widths, the largest doubt decides, then the fewest tokens left, then the order.

    Args:
      leaves: of S states, with rewards from 0 to 1; each leaf counts as one draw.
      doubt: [S] at least 0.
      budget: tokens that are left.

    Returns:
      The number of a state; None if no branch fits into the budget.
    """
    cost = leaves.tokens_left
    fits = np.flatnonzero(cost <= budget)
    if not fits.size:
        return None
    width = wilson_width(leaves.mean[fits], leaves.graded[fits], confidence)
    return int(fits[np.lexsort((cost[fits], -doubt[fits], -width))[0]])
