"""Credit rules: turn the rewards of a tree's leaves into one advantage for each node.

`parent` and `tree` are as in `stages.maths.trees`. R is the reward of a leaf, L(n) the leaves below a node n (a leaf
itself for a leaf), μ(G) and σ(G) the mean and the population standard deviation of the rewards of a group of leaves,
root the prompt. A reward that is NaN is unknown: such a leaf is in no mean, and a node without another leaf has the
advantage NaN. For trees of one level, every rule is a method of groups: Dr. GRPO (`treepo`), twice that (`treerl`), or
GRPO (`treeadv`, `tree-grpo`).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.maths.advantages import grpo
from stages.maths.tree_structure import is_leaf, levels

Rule = Literal["treerl", "treepo", "treeadv", "tree-grpo"]


def leaf_totals(
    parent: NDArray[np.int64], tree: NDArray[np.int64], reward: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the sum of the known values of the leaves below each node, and their number.

    Args:
      parent, tree: [N] int64.
      reward: [N] values of the leaves, NaN where unknown; entries of inner nodes are ignored.

    Returns:
      [N + Q] each: of the nodes, then of the prompts, which end the arrays in the order of the questions.
    """
    values = np.asarray(reward, np.float64)
    known = is_leaf(parent) & ~np.isnan(values)
    prompts = np.zeros(int(tree.max(initial=-1)) + 1)
    total = np.concatenate([np.where(known, values, 0.0), prompts])
    count = np.concatenate([known, prompts]).astype(np.int64)
    start = np.where(parent < 0, parent.size + tree, parent)
    for rows in levels(parent)[::-1]:
        np.add.at(total, start[rows], total[rows])
        np.add.at(count, start[rows], count[rows])
    return total, count


def leaf_means(
    parent: NDArray[np.int64], tree: NDArray[np.int64], reward: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return V at the end and at the start of each node as the mean reward of the leaves below: [N] each.

    Every leaf has the same weight; `trees.node_values` gives every branch the same weight.
    """
    total, count = leaf_totals(parent, tree, reward)
    with np.errstate(invalid="ignore"):
        value = total / count
    return value[: parent.size], value[np.where(parent < 0, parent.size + tree, parent)]


def credit(rule: Rule, parent: NDArray[np.int64], tree: NDArray[np.int64], reward: ArrayLike) -> NDArray[np.float64]:
    """Return the advantage of each node: [N] float64.

        treerl     [(V(n) − V(root)) + (V(n) − V(parent))] / √|L(n)|, V = μ(L)        (arXiv 2506.11902, eq. 4 to 6)
        treepo     mean over l ∈ L(n) of  mean over ancestors a of l with |L(a)| > 1 of  R(l) − μ(L(a))
                   (arXiv 2508.17445; released code with adv_weight_strategy = average)
        treeadv    mean over l ∈ L(n) of  (R(l) − μ) / σ over the leaves of the question  (TreeAdv)
        tree-grpo  mean over l ∈ L(n) of  (R(l) − μ) / σ over the question, plus the same over the tree of l
                   (arXiv 2509.21240). Every node that continues the prompt begins a tree.

    The papers train each response as a whole. Here a node is trained once, with the mean over the responses through it.
    """
    return _treerl(parent, tree, reward) if rule == "treerl" else _mean_of_leaves(rule, parent, tree, reward)


def _treerl(parent: NDArray[np.int64], tree: NDArray[np.int64], reward: ArrayLike) -> NDArray[np.float64]:
    total, count = leaf_totals(parent, tree, reward)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = total / count
        own, above = value[: parent.size], value[np.where(parent < 0, parent.size + tree, parent)]
        return (2 * own - value[parent.size + tree] - above) / np.sqrt(count[: parent.size])


def _mean_of_leaves(
    rule: Rule, parent: NDArray[np.int64], tree: NDArray[np.int64], reward: ArrayLike
) -> NDArray[np.float64]:
    """Return the mean over the leaves below each node of the advantage that a rule gives to a leaf."""
    values = np.asarray(reward, np.float64)
    leaf = np.flatnonzero(is_leaf(parent))
    of_leaf = np.full(parent.size, np.nan)
    if rule == "treepo":
        of_leaf[leaf] = _against_ancestors(parent, tree, values)[leaf]
    else:
        of_leaf[leaf] = grpo(values[leaf], tree[leaf]).advantage
        if rule == "tree-grpo":
            of_leaf[leaf] += grpo(values[leaf], _top(parent)[leaf]).advantage
    return leaf_means(parent, tree, of_leaf)[0]


def _against_ancestors(
    parent: NDArray[np.int64], tree: NDArray[np.int64], values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return for each leaf the mean of R − μ(L(a)) over its ancestors with several leaves, the prompt included."""
    total, count = leaf_totals(parent, tree, values)
    counts = count > 1
    with np.errstate(invalid="ignore"):
        mean = np.where(counts, total / count, 0.0)
    # Sums over the path from the prompt to each node, the node itself included; a leaf is no ancestor of itself.
    sums, number = mean[parent.size + tree].copy(), counts[parent.size + tree].astype(np.int64)
    for rows in levels(parent)[1:]:
        above = parent[rows]
        sums[rows] = sums[above] + mean[above]
        number[rows] = number[above] + counts[above]
    return np.where(np.isnan(values), np.nan, np.where(number > 0, values - sums / np.maximum(number, 1), 0.0))


def _top(parent: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the node that continues the prompt above each node, or the node itself: [N] int64."""
    top = np.arange(parent.size)
    for rows in levels(parent)[1:]:
        top[rows] = top[parent[rows]]
    return top
