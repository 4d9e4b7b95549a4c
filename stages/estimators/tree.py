"""The tree estimator: values of the tree that was sampled, from the rewards of its leaves up (arXiv 2505.23564).

V of a stretch's end is the mean of its children's, V of a leaf its reward; a stretch's advantage is V at its end less V
at its start, where its siblings begin too. Trees are read whole, in whichever part their stretches lie.
"""

# pyarrow.compute makes its functions at import time:
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.configs.estimate import EstimatorName, EstimatorOptions, select_settings
from stages.core.config import option
from stages.core.errors import UserError
from stages.core.progress import Progress
from stages.estimators import Estimated, Estimator, Portion
from stages.estimators.rows import count_questions, estimated
from stages.estimators.segments import load_whole_questions
from stages.maths.advantages import Advantages, Baseline, sibling_advantages
from stages.maths.ragged import gather_ranges
from stages.maths.tree_structure import is_leaf
from stages.maths.trees import leaves_below, node_values, preorder, start_states
from stages.maths.values import group_std
from stages.responses.trees import parent_rows
from stages.sampling.pool import SamplerPool
from stages.shards.parts import Artefact, Part
from stages.shards.tables import encode_names, rows_by_name

COLUMNS = ("trajectory_id", "parent_id", "question_id", "token_ids", "finish_reason", "reward")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options that this estimator reads."""

    estimator: EstimatorName = option("As given.")
    baseline: Baseline = option("As given.")
    normalize_by: Literal["siblings"] | None = option("As given.")
    keep_zero: bool = option("As given.")
    best_of: int | None = option("As given.")


def prepare(
    options: EstimatorOptions,
    cutpoints: Artefact,
    trajectories: Artefact,
    out: Path,
    progress: Progress,
    pool: SamplerPool,
) -> Estimator:
    """As `stages.estimators.Prepare`."""
    settings = select_settings(Settings, options)

    def read(part: Part) -> Portion:
        rows, nodes = load_whole_questions(cutpoints, part, trajectories, COLUMNS)
        parent = parent_rows(nodes)
        check_nodes(nodes, parent, trajectories)
        check_stretches(rows, nodes, part)
        return Portion.at_once(rows.num_rows, estimate(settings, rows, nodes, parent))

    return Estimator(settings, read)


def check_nodes(nodes: pa.Table, parent: np.ndarray, trajectories: Artefact) -> None:
    """Raises UserError for an inner node that nothing continues, a leaf without reward, an end that is continued."""
    leaf, goes_on = is_leaf(parent), np.asarray(pc.equal(nodes["finish_reason"], "segment"))
    unrewarded = np.asarray(pc.is_null(nodes["reward"]))
    problems = {
        "goes on (finish_reason segment), but no stretch continues it": leaf & goes_on,
        "is a leaf without reward": leaf & unrewarded,
        "has ended (finish_reason is not segment), but stretches continue it": ~leaf & ~goes_on,
    }
    for problem, where in problems.items():
        if where.any():
            raise UserError(f"{trajectories.path}: {nodes['trajectory_id'][int(where.argmax())]} {problem}")


def check_stretches(rows: pa.Table, nodes: pa.Table, part: Part) -> None:
    """Raises UserError unless every row covers a stretch from its first token to its last, and no two the same."""
    owner = rows_by_name(rows["trajectory_id"], nodes["trajectory_id"])
    length = pc.list_value_length(nodes["token_ids"]).to_numpy()[owner]
    whole = (owner >= 0) & (rows["start"].to_numpy() == 0) & (rows["end"].to_numpy() == length)
    if not whole.all():
        name = rows["trajectory_id"][int(whole.argmin())]
        raise UserError(
            f"{part.path} cuts the stretch {name}: --estimator tree takes stretches as they were sampled, which "
            "`spo segment` leaves whole"
        )


def estimate(settings: Settings, rows: pa.Table, nodes: pa.Table, parent: np.ndarray) -> Estimated:
    """One row per stretch of a part, tree by tree, each before those that continue it.

    Args:
      rows: of cutpoints. nodes: all stretches of their trees (`COLUMNS`). parent: [N] the row of each one's parent.
    """
    tree = encode_names(nodes["question_id"])
    reward = nodes["reward"].to_numpy().astype(np.float64)
    order = preorder(parent, tree, np.arange(parent.size))
    place = np.argsort(order)
    parent, tree, reward = np.where(parent < 0, -1, place[parent])[order], tree[order], reward[order]

    value, group = node_values(parent, reward), start_states(parent, tree)
    advantages = sibling_advantages(value, group, baseline=settings.baseline, scale=settings.normalize_by == "siblings")
    leaf = is_leaf(parent)
    first, count = leaves_below(parent, tree)
    row = rows_by_name(nodes["trajectory_id"].take(pa.array(order)), rows["trajectory_id"])
    own = row >= 0  # the nodes that this part holds, in pre-order
    return estimated(
        rows.take(pa.array(row[own])),
        Advantages(*(values[own] for values in advantages)),
        gather_ranges(reward[leaf].astype(np.float32), first[own], count[own]),
        std=group_std(value, group)[own],
        best_of=settings.best_of,
        keep_zero=settings.keep_zero,
        counts=count_questions(reward[leaf], tree[leaf]),
    )
