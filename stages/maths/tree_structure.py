"""Owns what follows from who continues whom: nodes of trees as rows, each knowing the row of its parent.

`parent` is [N] int64: the row of the node that a node continues, −1 for one that continues the prompt. Rows may come in
any order and belong to any number of trees.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.core.errors import UserError


def depths(parent: NDArray[np.int64]) -> NDArray[np.int64]:
    """[N] int64: how many nodes lie between a node and the prompt.

    Raises:
      UserError: nodes that continue each other in a circle.
    """
    found = np.where(parent < 0, 0, -1)
    waiting = np.flatnonzero(found < 0)
    while waiting.size:
        above = found[parent[waiting]]
        known = above >= 0
        if not known.any():
            raise UserError(f"stretches continue each other in a circle: row {waiting[0]} never leads to a prompt")
        found[waiting[known]] = above[known] + 1
        waiting = waiting[~known]
    return found


def is_leaf(parent: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[N]: whether no node continues it."""
    leaf = np.ones(parent.size, np.bool_)
    leaf[parent[parent >= 0]] = False
    return leaf


def sum_from_root(parent: NDArray[np.int64], values: ArrayLike) -> NDArray:
    """[N]: the sum of the values from the prompt down to each node, e.g. the length of the response so far."""
    sums = np.array(values)
    for rows in levels(parent)[1:]:
        sums[rows] += sums[parent[rows]]
    return sums


def path_probabilities(parent: NDArray[np.int64], tree: NDArray[np.int64]) -> NDArray[np.float64]:
    """The chance of passing through each node when every branch is equally likely: Π 1 / siblings on the way.

    Over the leaves of a tree it sums to 1, and Σ share · reward is the mean of its children's means: V(prompt).

    Args:
      tree: [N] int64, a number from 0 for the question of each node.

    Returns:
      [N] float64.
    """
    above = np.where(parent < 0, parent.size + tree, parent)  # a prompt stands behind the nodes
    siblings = np.bincount(above, minlength=parent.size + 1)[above]
    found = 1.0 / siblings
    for rows in levels(parent)[1:]:
        found[rows] *= found[parent[rows]]
    return found


def levels(parent: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The rows of each depth, from the prompt down."""
    depth = depths(parent)
    order = np.argsort(depth, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(depth[order])) + 1) if parent.size else [order]
