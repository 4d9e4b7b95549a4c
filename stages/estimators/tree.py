"""Estimate values of a sampled tree bottom-up from the rewards of its leaves (arXiv 2505.23564, SPO-tree).

V at the end of an inner node is the mean of V over its children; V of a leaf is its reward. The advantage of a node is
V at its end minus V at its start, the state that it shares with its siblings, or follows another rule (--credit). Trees
are read whole, from all parts. A leaf that could not be graded is left out of the mean, and has no row; neither has a
node above such leaves only.
"""

# pyarrow.compute makes its functions at import time:
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.configs.estimate import Config
from stages.core.errors import UserError
from stages.core.paths import AnyPath
from stages.core.progress import Progress
from stages.estimators import EstimatedChunk, Estimator, PreparedPart
from stages.estimators.rows import build_rows, count_questions, count_ungradable
from stages.estimators.segments import load_whole_questions
from stages.maths.advantages import Advantages, sibling_advantages
from stages.maths.credit import credit, leaf_means
from stages.maths.ragged import gather_ranges
from stages.maths.tree_structure import is_leaf
from stages.maths.trees import leaves_below, node_values, preorder, start_states
from stages.maths.values import group_std
from stages.responses.trees import parent_rows
from stages.sampling.pool import SamplerPool
from stages.shards.parts import Artefact, Part
from stages.shards.tables import encode_names, rows_by_name

COLUMNS = ("trajectory_id", "parent_id", "question_id", "token_ids", "finish_reason", "reward")


RECORDED = ("estimator", "baseline", "normalize_by", "credit", "node_value", "keep_zero", "best_of")
"""Options that this estimator reads."""


def prepare(
    options: Config,
    cutpoints: Artefact,
    trajectories: Artefact,
    out: AnyPath,
    progress: Progress,
    pool: SamplerPool,
) -> Estimator:
    """Prepare the estimator, as `stages.estimators.Prepare` describes."""

    def read(part: Part) -> PreparedPart:
        rows, nodes = load_whole_questions(cutpoints, part, trajectories, COLUMNS)
        parent = parent_rows(nodes)
        check_nodes(nodes, parent, trajectories)
        check_whole_nodes(rows, nodes, part)
        return PreparedPart.single_chunk(rows.num_rows, estimate(options, rows, nodes, parent))

    return Estimator(options, RECORDED, read)


def check_nodes(nodes: pa.Table, parent: np.ndarray, trajectories: Artefact) -> None:
    """Check that the nodes form complete trees.

    Args:
      parent: [N] row of each node's parent, −1 for none.

    Raises:
      UserError: an unfinished node has no children, or a finished node has children.
    """
    leaf, continues = is_leaf(parent), np.asarray(pc.equal(nodes["finish_reason"], "segment"))
    problems = {
        "is unfinished (finish_reason segment), but has no children": leaf & continues,
        "is finished (finish_reason is not segment), but has children": ~leaf & ~continues,
    }
    for problem, where in problems.items():
        if where.any():
            raise UserError(f"{trajectories.path}: {nodes['trajectory_id'][int(where.argmax())]} {problem}")


def check_whole_nodes(rows: pa.Table, nodes: pa.Table, part: Part) -> None:
    """Check that every row of the cutpoints covers a whole node.

    Raises:
      UserError: a row does not start at the first token of its node and end at the last.
    """
    owner = rows_by_name(rows["trajectory_id"], nodes["trajectory_id"])
    length = pc.list_value_length(nodes["token_ids"]).to_numpy()[owner]
    whole = (owner >= 0) & (rows["start"].to_numpy() == 0) & (rows["end"].to_numpy() == length)
    if not whole.all():
        name = rows["trajectory_id"][int(whole.argmin())]
        raise UserError(
            f"{part.path} divides node {name}; expected one segment per node, as `spo segment` writes for trees: "
            "run it again"
        )


def estimate(options: Config, rows: pa.Table, nodes: pa.Table, parent: np.ndarray) -> EstimatedChunk:
    """Estimate one row per node of a part, tree by tree, in pre-order.

    Args:
      rows: of the cutpoints.
      nodes: [N] all nodes of their trees (`COLUMNS`).
      parent: [N] row of each node's parent, −1 for none.
    """
    tree = encode_names(nodes["question_id"])
    reward = nodes["reward"].to_numpy().astype(np.float64)
    order = preorder(parent, tree, np.arange(parent.size))
    position = np.argsort(order)  # of each node in pre-order
    parent, tree, reward = np.where(parent < 0, -1, position[parent])[order], tree[order], reward[order]
    value, group = node_values(parent, reward), start_states(parent, tree)
    advantages = assign_credit(options, parent, tree, reward)
    leaf = is_leaf(parent)
    graded = leaf & ~np.isnan(reward)
    first, count = leaves_below(parent, tree, graded)
    row = rows_by_name(nodes["trajectory_id"].take(pa.array(order)), rows["trajectory_id"])
    own = row >= 0  # the nodes of this part, in pre-order
    return build_rows(
        rows.take(pa.array(row[own])),
        Advantages(*(values[own] for values in advantages)),
        gather_ranges(reward[graded].astype(np.float32), first[own], count[own]),
        std=group_std(value, group)[own],
        best_of=options.best_of,
        keep_zero=options.keep_zero,
        counts={**count_questions(reward[leaf], tree[leaf]), **count_ungradable(reward[leaf & own])},
    )


def assign_credit(options: Config, parent: np.ndarray, tree: np.ndarray, reward: np.ndarray) -> Advantages:
    """Return V at both ends of each node and its advantage under the rule of --credit.

    Args:
      parent, tree, reward: [N] in pre-order.
    """
    rule = options.credit
    if options.node_value == "leaves" or rule == "treerl":
        end, start = leaf_means(parent, tree, reward)
        advantages = Advantages(start, end, end - start)
    else:
        scale = rule == "siblings" or options.normalize_by == "siblings"
        value, group = node_values(parent, reward), start_states(parent, tree)
        advantages = sibling_advantages(value, group, baseline=options.baseline, scale=scale)
    if rule in ("parent", "siblings"):
        return advantages
    return advantages._replace(advantage=credit(rule, parent, tree, reward))
