"""Join the segments of an advantages artefact with the tokens of their trajectories into training examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.core.errors import UserError
from stages.maths import tree_structure
from stages.maths.advantages import NEGLIGIBLE
from stages.maths.ragged import Ragged, offsets_of
from stages.optimization.batches import Example
from stages.responses.trees import parent_rows
from stages.shards.parts import Artefact
from stages.shards.tables import ragged, rows_by_name

Mask = Literal["cutpoints", "all"]


@dataclass(frozen=True)
class Experience:
    """The training examples of one advantages artefact, in its order: whole responses, or nodes of trees.

    Attributes:
      ids: `trajectory_id` of each example.
      questions: `question_id` of each example.
      groups: group of each example; a batch keeps a group together. The siblings in a tree are a group, as they share
        a prefix; each whole response is its own group.
      examples: the examples themselves.
      shares_prefixes: whether the examples of a group share a prefix: nodes of trees, or rollouts.
      left_out: number of questions or examples that were left out, by reason.
    """

    ids: list[str]
    questions: list[str]
    groups: list[str]
    examples: list[Example]
    shares_prefixes: bool
    left_out: dict[str, int]

    def select(self, chosen: Sequence[int]) -> Experience:
        """Return the experience of the chosen examples only, given by index."""
        ids, questions, groups = (
            [column[index] for index in chosen] for column in (self.ids, self.questions, self.groups)
        )
        examples = [self.examples[index] for index in chosen]
        return Experience(ids, questions, groups, examples, self.shares_prefixes, self.left_out)

    def joined(self, other: Experience) -> Experience:
        """Return the experience of both, that of `other` last."""
        left_out = self.left_out | {
            reason: self.left_out.get(reason, 0) + number for reason, number in other.left_out.items()
        }
        return Experience(
            self.ids + other.ids,
            self.questions + other.questions,
            self.groups + other.groups,
            self.examples + other.examples,
            self.shares_prefixes or other.shares_prefixes,
            left_out,
        )


@dataclass(frozen=True)
class _KeptTokens:
    """The kept tokens of all trajectories, flat, sorted by trajectory and position.

    Attributes:
      row: int64 [M], row of the token's trajectory.
      position: int64 [M], offset of the token within the response.
      advantage: float64 [M], advantage of the token's segment.
      segment: int64 [M], row of that segment.
      segments: int64 [N], number of segments of each trajectory.
      has_signal: bool [N], whether one of these segments has an advantage other than 0.
    """

    row: NDArray[np.int64]
    position: NDArray[np.int64]
    advantage: NDArray[np.float64]
    segment: NDArray[np.int64]
    segments: NDArray[np.int64]
    has_signal: NDArray[np.bool_]


def load_experience(
    advantages: Artefact,
    trajectories: Artefact,
    mask: Mask,
    *,
    recorded: bool,
    compared: bool = False,
    kept: bool = False,
    drop_uniform: bool = False,
    drop_unfinished: bool = False,
) -> Experience:
    """Return an example for every trajectory that has a segment.

    The advantage of a segment goes to each of its tokens that the mask keeps. The tokens of a node of a tree follow the
    prompt and the nodes above it. Tokens of missing segments (an estimator drops those without advantage) have no loss.

    Args:
      mask: `cutpoints` keeps the tokens in the column of that name, the probability mask (arXiv 2505.23564, section
        4.3); `all` keeps every token of a segment.
      recorded: use the log-probabilities that the sampler recorded as the old ones.
      compared: keep these log-probabilities, to compare them with those of the policy.
      kept: keep them for the record of the kept tokens.
      drop_uniform: leave out questions whose segments all have an advantage of 0.
      drop_unfinished: leave out responses, or leaves of trees, that reached the token limit.

    Raises:
      UserError: a file of another tool has no segment; a segment of an unknown trajectory, outside the response, or
        overlapping another one; an advantage that is not finite; an empty prompt; a node without a path to a prompt.
    """
    columns = ["trajectory_id", "parent_id", "question_id", "prompt_token_ids", "token_ids", "reward"]
    table = trajectories.read_all(
        [*columns, *["logprobs"] * (recorded or compared or kept), *["finish_reason"] * drop_unfinished]
    )
    ids = table["trajectory_id"].to_pylist()
    parent = _parents(trajectories, table)
    from_trees = bool((parent >= 0).any())
    questions = table["question_id"].to_pylist()
    responses = ragged(table["token_ids"])
    tokens = _kept_tokens(advantages, ids, responses.lengths, mask)
    rewards = table["reward"].to_numpy()
    logprobs = ragged(table["logprobs"]) if "logprobs" in table.column_names else None
    prefix_of = _prefix_function(parent, ragged(table["prompt_token_ids"]), responses)

    used, left_out = _used_rows(table, tokens, questions, drop_uniform, drop_unfinished)
    starts = np.searchsorted(tokens.row, np.arange(len(ids) + 1))
    examples = []
    for row in used:
        part = slice(starts[row], starts[row + 1])
        prefix, response, position = prefix_of(row), responses[row], tokens.position[part]
        if prefix.size == 0 and 0 in position:
            raise UserError(
                f"the prompt of trajectory {ids[row]} in {trajectories.path} is empty; expected at least one token"
            )
        sampled = logprobs[row][position] if logprobs else None
        examples.append(
            Example(
                tokens=np.concatenate([prefix, response]),
                kept=prefix.size + position,
                advantages=tokens.advantage[part],
                old=sampled if recorded else None,
                sampled=sampled if compared else None,
                recorded=sampled if kept else None,
                segment_ids=tokens.segment[part],
                response_tokens=response.size,
                segments=int(tokens.segments[row]),
                reward=float(rewards[row]),
            )
        )
    # Nodes are grouped by parent: another node, or the question for nodes at the top of a tree.
    parents = [ids[row] if row >= 0 else questions[i] for i, row in enumerate(parent.tolist())]
    groups = [f"{parents[row]}/" if from_trees else ids[row] for row in used]
    return Experience(
        [ids[row] for row in used], [questions[row] for row in used], groups, examples, from_trees, left_out
    )


def _kept_tokens(advantages: Artefact, ids: list[str], lengths: NDArray[np.int64], mask: Mask) -> _KeptTokens:
    """Check the segments, and return their kept tokens.

    Args:
      ids: `trajectory_id` of each row of the trajectories.
      lengths: int64 [N], length of each response.

    Raises:
      UserError: as `load_experience`.
    """
    table = advantages.read_all(("trajectory_id", "start", "end", "cutpoints", "advantage"))
    row = rows_by_name(table["trajectory_id"], pa.array(ids, pa.string()))
    if (row < 0).any():
        unknown = table["trajectory_id"][int((row < 0).argmax())].as_py()
        raise UserError(f"{advantages.path} has segments of trajectory {unknown}, which its trajectories do not have")
    # An artefact that `spo estimate` wrote may be empty: it drops segments whose advantage is 0.
    if not row.size and advantages.lineage is None:
        raise UserError(f"{advantages.path} holds no segment; expected at least one to train on")
    start, end = (table[name].to_numpy().astype(np.int64) for name in ("start", "end"))
    advantage = table["advantage"].to_numpy()
    misplaced = (start < 0) | (end > lengths[row]) | (start > end)
    _refuse(advantages, ids, row, misplaced, "is not within the response")
    _refuse(advantages, ids, row, ~np.isfinite(advantage), "has an advantage that is not finite")
    kept = ragged(table["cutpoints"]) if mask == "cutpoints" else _all_tokens(start, end)
    position = kept.flat.astype(np.int64)
    segment = np.repeat(np.arange(row.size), kept.lengths)
    outside = (position < start[segment]) | (position >= end[segment])
    _refuse(advantages, ids, row[segment], outside, "has a cutpoint outside the segment")
    by_start = np.lexsort((start, row))
    overlaps = (np.diff(row[by_start]) == 0) & (start[by_start][1:] < end[by_start][:-1])
    _refuse(advantages, ids, row[by_start][1:], overlaps, "overlaps another one")

    order = np.lexsort((position, row[segment]))
    return _KeptTokens(
        row[segment][order],
        position[order],
        advantage[segment][order],
        segment[order],
        segments=np.bincount(row, minlength=len(ids)),
        has_signal=np.bincount(row[np.abs(advantage) > NEGLIGIBLE], minlength=len(ids)) > 0,
    )


def _all_tokens(start: NDArray[np.int64], end: NDArray[np.int64]) -> Ragged:
    """Return the offsets start, …, end − 1 of each segment."""
    offsets = offsets_of(end - start)
    return Ragged(np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], end - start), offsets)


def _refuse(
    advantages: Artefact, ids: list[str], row: NDArray[np.int64], wrong: NDArray[np.bool_], problem: str
) -> None:
    """Raise a UserError about the first wrong segment; `row` and `wrong` have one value per segment, or per token."""
    if wrong.any():
        raise UserError(f"a segment of trajectory {ids[row[np.argmax(wrong)]]} in {advantages.path} {problem}")


def _parents(trajectories: Artefact, table: pa.Table) -> NDArray[np.int64]:
    """Return the row of each node's parent, −1 at the top of a tree: int64 [N].

    Raises:
      UserError: a parent is missing, or nodes are their own ancestors.
    """
    try:
        parent = parent_rows(table)
        tree_structure.depths(parent)  # refuses a cycle
    except UserError as error:
        raise UserError(f"{trajectories.path}: {error}") from error
    return parent


def _prefix_function(
    parent: NDArray[np.int64], prompts: Ragged, responses: Ragged
) -> Callable[[int], NDArray[np.int32]]:
    """Return a function from a row to the tokens before its response: the prompt, and in a tree the nodes above it."""
    ends: dict[int, NDArray[np.int32]] = {}  # of each node with children: the tokens from the prompt to its end

    def prefix(row: int) -> NDArray[np.int32]:
        # A loop and not recursion: a chain of nodes may be longer than Python's recursion limit.
        path, ancestor = [row], int(parent[row])
        while ancestor >= 0 and ancestor not in ends:
            path.append(ancestor)
            ancestor = int(parent[ancestor])
        for node in path[:0:-1]:  # from the top down, without the row itself
            ends[node] = np.concatenate([ends[ancestor] if ancestor >= 0 else prompts[node], responses[node]])
            ancestor = node
        return ends[ancestor] if ancestor >= 0 else prompts[row]

    return prefix


def _used_rows(
    table: pa.Table, tokens: _KeptTokens, questions: list[str], drop_uniform: bool, drop_unfinished: bool
) -> tuple[list[int], dict[str, int]]:
    """Return the rows that become examples, and how many questions or examples are left out, by reason."""
    used = tokens.segments > 0
    left_out: dict[str, int] = {}
    if drop_uniform:
        with_signal = {questions[row] for row in np.flatnonzero(tokens.has_signal)}
        uniform = np.array([question not in with_signal for question in questions]) & used
        left_out["questions_uniform"] = len({questions[row] for row in np.flatnonzero(uniform)})
        used &= ~uniform
    if drop_unfinished:
        unfinished = np.array([reason == "length" for reason in table["finish_reason"].to_pylist()]) & used
        left_out["trajectories_unfinished"] = int(unfinished.sum())
        used &= ~unfinished
    return np.flatnonzero(used).tolist(), left_out
