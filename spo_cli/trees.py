"""Read the trees behind an artefact for `spo show`: compute their figures, and draw the tree of one question."""

# pyarrow.compute defines its functions at import, so the type checker does not know them.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.text import Text
from rich.tree import Tree

from spo_cli.figures import Figures, counts_of, distribution, moments, numbers, of_segments, with_error
from spo_cli.trajectory import advantage_style, printable
from stages.core.errors import UserError
from stages.core.paths import AnyPath
from stages.maths import tree_structure
from stages.maths.advantages import NEGLIGIBLE
from stages.maths.statistics import mean_and_standard_error
from stages.maths.trees import node_values, prompt_values
from stages.maths.values import all_equal
from stages.responses.trees import are_trees, parent_rows
from stages.shards.origin import trace_back
from stages.shards.parts import Artefact
from stages.shards.schemas import TRAJECTORIES
from stages.shards.tables import encode_names

_COLUMNS = ("trajectory_id", "parent_id", "question_id", "token_ids", "text", "finish_reason", "reward")
_EXCERPT = 48  # characters of a node's text that are drawn


@dataclass(frozen=True)
class Nodes:
    """The N nodes of an artefact's trees; whole responses are trees of one level.

    Attributes:
      rows: columns trajectory_id, question_id, text, finish_reason, reward.
      length: [N] int64, tokens of each node.
      parent: [N] int64, row of each node's parent; -1 is the prompt.
    """

    rows: pa.Table
    length: np.ndarray
    parent: np.ndarray

    @property
    def value(self) -> np.ndarray:
        """[N] float64: value at the end of each node, from the rewards of the leaves."""
        return node_values(self.parent, numbers(self.rows["reward"]).astype(np.float64))

    @property
    def prompt_values(self) -> np.ndarray:
        """[questions] float64: value of each prompt, the mean over siblings at every level; NaN if none has one."""
        return prompt_values(self.parent, self.question, self.value)

    @property
    def reward(self) -> float | None:
        """Mean value over the prompts that have one; None if none has one."""
        values = self.prompt_values[~np.isnan(self.prompt_values)]
        return float(values.mean()) if values.size else None

    @property
    def question(self) -> np.ndarray:
        """[N] int64: index of each node's question, from 0."""
        return encode_names(self.rows["question_id"])


def trajectories_of(artefact: Artefact, at: AnyPath | None) -> Artefact:
    """Return the trajectories behind an artefact, or the artefact itself. Raises as `trace_back`."""
    return artefact if artefact.schema is TRAJECTORIES else trace_back(artefact, TRAJECTORIES, at)


def load_nodes(trajectories: Artefact) -> Nodes:
    """Read all rows of trajectories as nodes.

    Raises:
      UserError: a missing parent, an inner node without children, or missing columns.
    """
    table = trajectories.read_all(_COLUMNS)
    length = numbers(pc.list_value_length(table["token_ids"])).astype(np.int64)
    parent = parent_rows(table)
    childless = tree_structure.is_leaf(parent) & np.asarray(pc.equal(table["finish_reason"], "segment"))
    if childless.any():
        name = table["trajectory_id"][int(childless.argmax())].as_py()
        raise UserError(f"{trajectories.path}: {name} is unfinished (finish_reason segment), but has no children")
    return Nodes(table.drop_columns(["token_ids", "parent_id"]), length, parent)


def tree_statistics(stage: str, table: pa.Table | None, nodes: Nodes) -> Figures:
    """Return the figures of trees; the reward is the value of the prompts.

    Args:
      stage: "rollout", "segment" or "estimate".
      table: rows of cutpoints or advantages, with `figures.COLUMNS`; None for trajectories.
      nodes: nodes of the trees.
    """
    rows = nodes.parent.size if table is None else table.num_rows
    if not rows:
        return {"rows": 0}
    leaf, depth = tree_structure.is_leaf(nodes.parent), tree_structure.depths(nodes.parent)
    reward, values = numbers(nodes.rows["reward"])[leaf], nodes.prompt_values
    known = values[~np.isnan(values)]
    figures: Figures = {
        "rows": rows,
        "questions": values.size,
        **({"reward": with_error(*mean_and_standard_error(known))} if known.size else {}),
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
            "segments_without_advantage_left_out": nodes.parent.size - rows,
            "value_at_their_starts": moments(numbers(table["value_start"])),
            "advantage": moments(advantage),
            "share_of_advantages_that_are_zero": float(np.mean(np.abs(advantage) <= NEGLIGIBLE)),
        }
    return figures


def draw_tree(nodes: Nodes, question: str, advantage: Mapping[str, float]) -> Tree:
    """Draw the tree of one question: branch, tokens, value or reward, advantage and the first characters of each node.

    Args:
      nodes: nodes of all trees.
      question: id of the question.
      advantage: trajectory_id → advantage, for the nodes that have one.

    Raises:
      UserError: no such question.
    """
    rows = np.flatnonzero(np.asarray(pc.equal(nodes.rows["question_id"], question)))
    if not rows.size:
        raise UserError(f"there is no question {question!r}; ids look like {nodes.rows['question_id'][0].as_py()!r}")
    value, leaf = nodes.value, tree_structure.is_leaf(nodes.parent)
    prompt = nodes.prompt_values[nodes.question[rows[0]]]
    trees = {-1: Tree(Text.assemble((question, "bold"), f"  V {prompt:.2f}"))}
    largest = max((abs(one) for one in advantage.values()), default=0.0)
    for row in rows[np.argsort(tree_structure.depths(nodes.parent)[rows], kind="stable")].tolist():
        name = nodes.rows["trajectory_id"][row].as_py()
        outcome = f"V {value[row]:.2f}"
        if leaf[row]:
            reward = "not gradable" if np.isnan(value[row]) else f"reward {value[row]:g}"
            outcome = f"{reward}  {nodes.rows['finish_reason'][row]}"
        line = Text.assemble((name.rpartition("/")[2], "cyan"), f"  {nodes.length[row]} tokens  {outcome}")
        if name in advantage:
            line.append(f"  A {advantage[name]:+.2f}", advantage_style(advantage[name], largest))
        text = printable(nodes.rows["text"][row].as_py() or "")
        line.append(f"  {text[:_EXCERPT]}{'…' * (len(text) > _EXCERPT)}", "dim")
        trees[row] = trees[int(nodes.parent[row])].add(line)
    return trees[-1]


def advantages_by_id(artefact: Artefact, question: str, nodes: Nodes) -> dict[str, float]:
    """Return trajectory_id → advantage for the nodes of a question that the artefact contains."""
    names = nodes.rows["trajectory_id"].filter(pc.equal(nodes.rows["question_id"], question))
    table = artefact.read_all(["trajectory_id", "advantage"])
    table = table.filter(pc.is_in(table["trajectory_id"], value_set=names.combine_chunks()))
    return dict(zip(table["trajectory_id"].to_pylist(), table["advantage"].to_pylist(), strict=True))


def nodes_behind(artefact: Artefact, at: AnyPath | None) -> Nodes | None:
    """Return the nodes behind an artefact's rows; None for whole responses.

    Raises:
      UserError, IncompleteInput: the trajectories cannot be found or read.
    """
    trajectories = trajectories_of(artefact, at)
    return load_nodes(trajectories) if are_trees(trajectories) else None


def _by_depth(depth: np.ndarray) -> dict[str, int]:
    return {str(level): int(count) for level, count in enumerate(np.bincount(depth))}
