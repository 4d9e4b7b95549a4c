"""Compute depths, leaves and sums along paths of trees whose nodes are rows.

`parent` is [N] int64: the row of the node that a node continues, or −1 for a node that continues the prompt. Rows may
be in any order and belong to any number of trees.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.core.errors import UserError


def depths(parent: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of nodes between each node and the prompt: [N] int64.

    Raises:
      UserError: the parents form a cycle.
    """
    depth = np.where(parent < 0, 0, -1)  # −1: not known yet
    remaining = np.flatnonzero(depth < 0)
    while remaining.size:
        parent_depth = depth[parent[remaining]]
        known = parent_depth >= 0
        if not known.any():
            raise UserError(f"the parents of nodes form a cycle: no path leads from row {remaining[0]} to a prompt")
        depth[remaining[known]] = parent_depth[known] + 1
        remaining = remaining[~known]
    return depth


def is_leaf(parent: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether each node has no children: [N] bool."""
    leaf = np.ones(parent.size, np.bool_)
    leaf[parent[parent >= 0]] = False
    return leaf


def sum_from_root(parent: NDArray[np.int64], values: ArrayLike) -> NDArray:
    """Return the sum of the values on the path from the prompt to each node, itself included: [N].

    For the lengths of nodes, that is the length of the response up to the end of each node.
    """
    sums = np.array(values)
    for rows in levels(parent)[1:]:
        sums[rows] += sums[parent[rows]]
    return sums


def path_probabilities(parent: NDArray[np.int64], tree: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the probability of passing through each node if every branch is equally likely: Π 1 / siblings.

    Over the leaves of a tree the probabilities sum to 1, and Σ probability · reward is V(prompt), the mean of the
    values of its children.

    Args:
      parent: [N] int64.
      tree: [N] int64, the question of each node, numbers from 0.

    Returns:
      [N] float64.
    """
    start_state = np.where(parent < 0, parent.size + tree, parent)  # prompts are numbered after the nodes
    siblings = np.bincount(start_state, minlength=parent.size + 1)[start_state]
    probability = 1.0 / siblings
    for rows in levels(parent)[1:]:
        probability[rows] *= probability[parent[rows]]
    return probability


def levels(parent: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the rows of each depth, from the prompt down."""
    depth = depths(parent)
    order = np.argsort(depth, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(depth[order])) + 1) if parent.size else [order]
