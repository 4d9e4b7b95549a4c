"""The trees behind an artefact, for `spo show`: their figures, and the tree of one question for the eye."""

# pyarrow.compute makes its functions when it is imported, out of the type checker's sight.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.text import Text
from rich.tree import Tree

from spo_cli.figures import Figures, counts_of, distribution, moments, numbers, of_segments, with_error
from spo_cli.trajectory import advantage_style, printable
from stages.core.errors import UserError
from stages.maths import tree_structure
from stages.maths.advantages import NEGLIGIBLE
from stages.maths.statistics import mean_and_standard_error
from stages.maths.trees import node_values
from stages.maths.values import all_equal
from stages.responses.trees import are_trees, parent_rows
from stages.shards.origin import trace_back
from stages.shards.parts import Artefact
from stages.shards.schemas import TRAJECTORIES
from stages.shards.tables import encode_names

_COLUMNS = ("trajectory_id", "parent_id", "question_id", "token_ids", "text", "finish_reason", "reward")
_EXCERPT = 48  # characters of a stretch


@dataclass(frozen=True)
class Nodes:
    """All nodes of an artefact's trees; a chain is a tree of one level.

    Attributes:
      rows: trajectory_id, question_id, text, finish_reason, reward.
      length: [N] int64, tokens of the stretch.
      parent: [N] int64, the row that each one continues, −1: the prompt.
    """

    rows: pa.Table
    length: np.ndarray
    parent: np.ndarray

    @property
    def value(self) -> np.ndarray:
        """[N] float64: V at each one's end, by the rewards of the leaves."""
        return node_values(self.parent, numbers(self.rows["reward"]).astype(np.float64))

    @property
    def prompt_values(self) -> np.ndarray:
        """[questions] float64: V of each prompt, the mean of means over the leaves."""
        leaf = tree_structure.is_leaf(self.parent)
        share = tree_structure.path_probabilities(self.parent, self.question)[leaf]
        return np.bincount(self.question[leaf], share * numbers(self.rows["reward"])[leaf])

    @property
    def reward(self) -> float:
        """Mean of V over the prompts."""
        return float(self.prompt_values.mean())

    @property
    def question(self) -> np.ndarray:
        """[N] int64, a number from 0 for the question."""
        return encode_names(self.rows["question_id"])


def trajectories_of(artefact: Artefact, at: Path | None) -> Artefact:
    """The trajectories that an artefact is, or was made from. Raises as `follow`."""
    return artefact if artefact.schema is TRAJECTORIES else trace_back(artefact, TRAJECTORIES, at)


def load_nodes(trajectories: Artefact) -> Nodes:
    """All rows of trajectories as nodes.

    Raises:
      UserError: a stretch that continues one which is not there, a leaf without reward, a file without the columns.
    """
    table = trajectories.read_all(_COLUMNS)
    length = numbers(pc.list_value_length(table["token_ids"])).astype(np.int64)
    parent = parent_rows(table)
    lost = tree_structure.is_leaf(parent) & np.asarray(pc.is_null(table["reward"]))
    if lost.any():
        name = table["trajectory_id"][int(lost.argmax())].as_py()
        raise UserError(f"{trajectories.path}: {name} has no reward, and no stretch that continues it")
    return Nodes(table.drop_columns(["token_ids", "parent_id"]), length, parent)


def tree_statistics(stage: str, table: pa.Table | None, nodes: Nodes) -> Figures:
    """The figures of trees: the reward is V(prompt), mean of means over the leaves, as it is estimated from.

    Args:
      table: the rows of cutpoints or advantages, with `figures.COLUMNS`; None for trajectories themselves.
    """
    shown = nodes.parent.size if table is None else table.num_rows
    if not shown:
        return {"rows": 0}
    leaf, depth = tree_structure.is_leaf(nodes.parent), tree_structure.depths(nodes.parent)
    reward, values = numbers(nodes.rows["reward"])[leaf], nodes.prompt_values
    figures: Figures = {
        "rows": shown,
        "questions": values.size,
        "reward": with_error(*mean_and_standard_error(values)),
        "questions_with_equal_rewards": float(all_equal(reward, nodes.question[leaf]).mean()),
        "nodes_per_depth": _by_depth(depth),
        "leaves_per_depth": _by_depth(depth[leaf]),
    }
    if table is None:
        figures |= {
            "response_length": distribution(tree_structure.sum_from_root(nodes.parent, nodes.length)[leaf]),
            "finish_reasons": counts_of(nodes.rows["finish_reason"]),
            "tokens": int(nodes.length.sum()),
        }
        return figures
    figures |= {name: figure for name, figure in of_segments(table).items() if "trajector" not in name}
    if stage == "estimate":
        advantage = numbers(table["advantage"])
        figures |= {
            "segments_without_advantage_left_out": nodes.parent.size - shown,
            "value_at_their_starts": moments(numbers(table["value_start"])),
            "advantage": moments(advantage),
            "share_of_advantages_that_are_zero": float(np.mean(np.abs(advantage) <= NEGLIGIBLE)),
        }
    return figures


def draw_tree(nodes: Nodes, question: str, advantage: Mapping[str, float]) -> Tree:
    """The tree of one question: of each node its branch, tokens, V or reward, advantage, and how its text begins.

    Args:
      advantage: by trajectory_id, of the nodes that have one.

    Raises:
      UserError: no such question.
    """
    rows = np.flatnonzero(np.asarray(pc.equal(nodes.rows["question_id"], question)))
    if not rows.size:
        raise UserError(f"there is no question {question!r}; ids look like {nodes.rows['question_id'][0].as_py()!r}")
    value, leaf = nodes.value, tree_structure.is_leaf(nodes.parent)
    prompt = float(np.mean(value[rows[nodes.parent[rows] < 0]]))
    trees = {-1: Tree(Text.assemble((question, "bold"), f"  V {prompt:.2f}"))}
    largest = max((abs(one) for one in advantage.values()), default=0.0)
    for row in rows[np.argsort(tree_structure.depths(nodes.parent)[rows], kind="stable")].tolist():
        name = nodes.rows["trajectory_id"][row].as_py()
        told = f"reward {value[row]:g}  {nodes.rows['finish_reason'][row]}" if leaf[row] else f"V {value[row]:.2f}"
        line = Text.assemble((name.rpartition("/")[2], "cyan"), f"  {nodes.length[row]} tokens  {told}")
        if name in advantage:
            line.append(f"  A {advantage[name]:+.2f}", advantage_style(advantage[name], largest))
        text = printable(nodes.rows["text"][row].as_py() or "")
        line.append(f"  {text[:_EXCERPT]}{'…' * (len(text) > _EXCERPT)}", "dim")
        trees[row] = trees[int(nodes.parent[row])].add(line)
    return trees[-1]


def advantages_by_id(artefact: Artefact, question: str, nodes: Nodes) -> dict[str, float]:
    """trajectory_id → advantage, of the stretches of a question that the artefact holds."""
    names = nodes.rows["trajectory_id"].filter(pc.equal(nodes.rows["question_id"], question))
    table = artefact.read_all(["trajectory_id", "advantage"])
    table = table.filter(pc.is_in(table["trajectory_id"], value_set=names.combine_chunks()))
    return dict(zip(table["trajectory_id"].to_pylist(), table["advantage"].to_pylist(), strict=True))


def nodes_behind(artefact: Artefact, at: Path | None) -> Nodes | None:
    """The nodes that an artefact's rows are stretches of; None for whole responses.

    Raises:
      UserError, IncompleteInput: trees that are out of reach.
    """
    trajectories = trajectories_of(artefact, at)
    return load_nodes(trajectories) if are_trees(trajectories) else None


def _by_depth(depth: np.ndarray) -> dict[str, int]:
    return {str(level): int(count) for level, count in enumerate(np.bincount(depth))}
