"""Compute the values of tree nodes from the rewards of the leaves, and the order of nodes.

`parent` is [N] int64 as in `stages.maths.tree_structure`: the row of the node that a node continues, or −1 for the
prompt. `tree` is [N] int64, the question of each node, numbers from 0. The functions work level by level.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.maths.tree_structure import is_leaf, levels


def start_states(parent: NDArray[np.int64], tree: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a number for the state that each node starts from: the row of its parent, or N + tree for a prompt.

    Nodes with the same number are siblings.

    Returns:
      [N] int64.
    """
    return np.where(parent < 0, parent.size + tree, parent)


def node_values(parent: NDArray[np.int64], reward: ArrayLike) -> NDArray[np.float64]:
    """Return V of each node: the reward of a leaf, the mean over the children of an inner node.

    (arXiv 2505.23564, SPO-tree.) A child without a value is left out of the mean.

    Args:
      parent: [N] int64.
      reward: [N] rewards of the leaves, NaN where one could not be graded; entries of inner nodes are ignored.

    Returns:
      [N] float64, V of the state at the end of each node; NaN where no leaf below it has a reward.

    Raises:
      ValueError: the reward of a leaf is infinite.
    """
    leaf, value = is_leaf(parent), np.array(reward, np.float64)
    if np.isinf(value[leaf]).any():
        raise ValueError("the reward of a leaf must be finite, or NaN where it is unknown")
    value[~leaf] = np.nan
    for rows in levels(parent)[:0:-1]:  # from the deepest level to depth 1
        rows = rows[~np.isnan(value[rows])]
        parents, first, child, count = np.unique(
            parent[rows], return_index=True, return_inverse=True, return_counts=True
        )
        origin = value[rows[first]]  # subtracted before averaging: the mean of equal values is then exact
        value[parents] = origin + np.bincount(child, value[rows] - origin[child], parents.size) / count
    return value


def prompt_values(
    parent: NDArray[np.int64], tree: NDArray[np.int64], value: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return V of each prompt, the mean over its children as in `node_values`: [Q] float64, NaN where none has a value.

    Args:
      parent, tree: [N] int64.
      value: [N] of each node.
    """
    top, questions = (parent < 0) & ~np.isnan(value), int(tree.max(initial=-1)) + 1
    with np.errstate(invalid="ignore"):
        return np.bincount(tree[top], value[top], questions) / np.bincount(tree[top], minlength=questions)


def preorder(parent: NDArray[np.int64], tree: NDArray[np.int64], rank: ArrayLike) -> NDArray[np.int64]:
    """Return the rows in pre-order: tree by tree, each node before its children, siblings by rank.

    Args:
      parent, tree: [N] int64.
      rank: [N] sort key among siblings.

    Returns:
      [N] int64.
    """
    start_state = start_states(parent, tree)
    # Number of nodes of each subtree, the node or prompt itself included.
    size = np.ones(parent.size + (int(tree.max(initial=-1)) + 1), np.int64)
    by_depth = levels(parent)
    for rows in by_depth[::-1]:
        np.add.at(size, start_state[rows], size[rows])
    # Positions of the nodes and, after them, of the prompts. A node comes directly after its parent and the subtrees
    # of its earlier siblings.
    position = np.zeros(size.size, np.int64)
    position[parent.size :] = np.cumsum(size[parent.size :]) - size[parent.size :]
    for rows in by_depth:
        rows = rows[np.lexsort((np.asarray(rank)[rows], start_state[rows]))]
        before = np.cumsum(size[rows]) - size[rows]
        is_first = np.diff(start_state[rows], prepend=-1) != 0
        position[rows] = position[start_state[rows]] + 1 + before - before[is_first][np.cumsum(is_first) - 1]
    return np.argsort(position[: parent.size])


def leaves_below(
    parent: NDArray[np.int64], tree: NDArray[np.int64], leaf: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the leaves that descend from the start state of each node, for rows in pre-order.

    In pre-order these leaves are contiguous among all leaves.

    Args:
      parent, tree: [N] int64.
      leaf: [N] the leaves that count: all of them, or those with a reward.

    Returns:
      [N] int64 each: the number of the first of these leaves among all that count, and how many there are.
    """
    counted, start_state = leaf.astype(np.int64), start_states(parent, tree)
    count = np.concatenate([counted, np.zeros(int(tree.max(initial=-1)) + 1, np.int64)])
    for rows in levels(parent)[::-1]:
        np.add.at(count, start_state[rows], count[rows])
    leaves_before = np.cumsum(counted) - counted
    first = np.full(count.size, parent.size)
    np.minimum.at(first, start_state, leaves_before)
    return first[start_state], count[start_state]
