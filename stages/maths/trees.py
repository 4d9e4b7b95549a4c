"""Owns the values of a tree's nodes: from the rewards of its leaves up to the prompt, level by level.

`parent` is [N] int64 as in `stages.maths.paths`: the row that a node continues, −1 for the prompt. `tree` is [N] int64,
the number (from 0) of the question that a node belongs to.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.maths.tree_structure import is_leaf, levels


def states_above(parent: NDArray[np.int64], tree: NDArray[np.int64]) -> NDArray[np.int64]:
    """[N] the number of the state that each node starts from: its parent's row, or N + tree for the prompt.

    Siblings are the nodes of one such number.
    """
    return np.where(parent < 0, parent.size + tree, parent)


def node_values(parent: NDArray[np.int64], reward: ArrayLike) -> NDArray[np.float64]:
    """V of a leaf is its reward, V of an inner node the mean of its children's (arXiv 2505.23564, SPO-tree).

    Args:
      reward: [N] of the leaves; what stands at inner nodes is not read.

    Returns:
      [N] float64: V at each node's end.

    Raises:
      ValueError: the reward of a leaf is not finite.
    """
    value = np.array(reward, np.float64)
    if not np.isfinite(value[is_leaf(parent)]).all():
        raise ValueError("every leaf must have a finite reward")
    for rows in levels(parent)[:0:-1]:
        above, first, child, count = np.unique(parent[rows], return_index=True, return_inverse=True, return_counts=True)
        origin = value[rows[first]]  # measured from a member: the mean of equal values is that value exactly
        value[above] = origin + np.bincount(child, value[rows] - origin[child], above.size) / count
    return value


def preorder(parent: NDArray[np.int64], tree: NDArray[np.int64], rank: ArrayLike) -> NDArray[np.int64]:
    """The rows tree by tree, each node before its children, and siblings by their rank: int64 [N].

    Args:
      rank: [N] what siblings are ordered by.
    """
    above = states_above(parent, tree)
    size = np.ones(parent.size + (int(tree.max(initial=-1)) + 1), np.int64)
    by_depth = levels(parent)
    for rows in by_depth[::-1]:
        np.add.at(size, above[rows], size[rows])
    # Position of each node and, behind them, of each prompt: one after its parent and its elder siblings' trees.
    place = np.zeros(size.size, np.int64)
    place[parent.size :] = np.cumsum(size[parent.size :]) - size[parent.size :]
    for rows in by_depth:
        rows = rows[np.lexsort((np.asarray(rank)[rows], above[rows]))]
        before = np.cumsum(size[rows]) - size[rows]
        begins = np.diff(above[rows], prepend=-1) != 0
        place[rows] = place[above[rows]] + 1 + before - before[begins][np.cumsum(begins) - 1]
    return np.argsort(place[: parent.size])


def leaves_below(parent: NDArray[np.int64], tree: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which leaves lie below the state that each node starts from, for rows in pre-order.

    Returns:
      [N] each: the first of them, counted among the leaves, and how many there are. They stand side by side.
    """
    leaf, above = is_leaf(parent).astype(np.int64), states_above(parent, tree)
    count = np.concatenate([leaf, np.zeros(int(tree.max(initial=-1)) + 1, np.int64)])
    for rows in levels(parent)[::-1]:
        np.add.at(count, above[rows], count[rows])
    before = np.cumsum(leaf) - leaf
    first = np.full(count.size, parent.size)
    np.minimum.at(first, above, before)
    return first[above], count[above]
