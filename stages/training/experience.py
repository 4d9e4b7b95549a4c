"""What a policy learns from: the segments of an advantages artefact, joined with the tokens of their trajectories."""

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
    """What can be learned from, in the order of the artefact: whole responses, or stretches of trees.

    Attributes:
      ids: `trajectory_id` of each example.
      questions: the question of each.
      groups: examples of one name stand together: siblings in a tree; a whole response has a name of its own.
      examples: the same, as the policy step takes them.
      stretches: whether they are stretches of trees.
      left_out: how many questions or examples were passed over, by why.
    """

    ids: list[str]
    questions: list[str]
    groups: list[str]
    examples: list[Example]
    stretches: bool
    left_out: dict[str, int]

    def select(self, chosen: Sequence[int]) -> Experience:
        """Some of the examples."""
        ids, questions, groups = (
            [column[index] for index in chosen] for column in (self.ids, self.questions, self.groups)
        )
        examples = [self.examples[index] for index in chosen]
        return Experience(ids, questions, groups, examples, self.stretches, self.left_out)


@dataclass(frozen=True)
class _Tokens:
    """The kept tokens of all trajectories, flat and in order.

    Attributes:
      row: int64 [M], the trajectory's row. position: int64 [M], offset in its tokens. advantage: float64 [M].
      segment: int64 [M], the row of the segment.
      segments: int64 [N], how many each trajectory has. telling: bool [N], whether one of them has an advantage.
    """

    row: NDArray[np.int64]
    position: NDArray[np.int64]
    advantage: NDArray[np.float64]
    segment: NDArray[np.int64]
    segments: NDArray[np.int64]
    telling: NDArray[np.bool_]


def load_experience(
    advantages: Artefact,
    trajectories: Artefact,
    mask: Mask,
    *,
    recorded: bool,
    compared: bool = False,
    drop_uniform: bool = False,
    drop_unfinished: bool = False,
) -> Experience:
    """Every trajectory that has a segment; a segment's advantage goes to each token of it that the mask keeps.

    A stretch of a tree comes behind the prompt and the stretches that it continues. Segments that are missing (an
    estimator drops those without advantage) leave their tokens without loss.

    Args:
      mask: `cutpoints` keeps the tokens listed in the column of that name, `all` every token of a segment.
      recorded: take the log-probabilities that were recorded when sampling as the old ones.
      compared: take them to be compared with the policy's.
      drop_uniform: leave out the questions whose segments all have an advantage of 0.
      drop_unfinished: leave out the responses, or last stretches, that ran out of room.

    Raises:
      UserError: no segment at all in a file from elsewhere; segments of unknown trajectories, outside their tokens or
        overlapping; an advantage that is not finite; an empty prompt; a stretch that does not lead back to a prompt.
    """
    columns = ["trajectory_id", "parent_id", "question_id", "prompt_token_ids", "token_ids", "reward"]
    table = trajectories.read_all(
        [*columns, *["logprobs"] * (recorded or compared), *["finish_reason"] * drop_unfinished]
    )
    ids = table["trajectory_id"].to_pylist()
    parent = _parents(trajectories, table)
    stretches = bool((parent >= 0).any())
    questions = table["question_id"].to_pylist()
    responses = ragged(table["token_ids"])
    tokens = _kept_tokens(advantages, ids, responses.lengths, mask)
    rewards = table["reward"].to_numpy()
    logprobs = ragged(table["logprobs"]) if recorded or compared else None
    prefix_of = _prefixes(parent, ragged(table["prompt_token_ids"]), responses)

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
                segment_of=tokens.segment[part],
                response_tokens=response.size,
                segments=int(tokens.segments[row]),
                reward=float(rewards[row]),
            )
        )
    above = [ids[row] if row >= 0 else questions[i] for i, row in enumerate(parent.tolist())]
    groups = [f"{above[row]}/" if stretches else ids[row] for row in used]
    return Experience(
        [ids[row] for row in used], [questions[row] for row in used], groups, examples, stretches, left_out
    )


def _kept_tokens(advantages: Artefact, ids: list[str], lengths: NDArray[np.int64], mask: Mask) -> _Tokens:
    """The kept tokens, sorted by trajectory and position."""
    table = advantages.read_all(("trajectory_id", "start", "end", "cutpoints", "advantage"))
    row = rows_by_name(table["trajectory_id"], pa.array(ids, pa.string()))
    if (row < 0).any():
        unknown = table["trajectory_id"][int((row < 0).argmax())].as_py()
        raise UserError(f"{advantages.path} has segments of trajectory {unknown}, which its trajectories do not have")
    if not row.size and advantages.lineage is None:  # of ours, one without any advantage that is not 0 may be empty
        raise UserError(f"{advantages.path} holds no segment; expected at least one to train on")
    start, end = (table[name].to_numpy().astype(np.int64) for name in ("start", "end"))
    advantage = table["advantage"].to_numpy()
    misplaced = (start < 0) | (end > lengths[row]) | (start > end)
    _refuse(advantages, ids, row, misplaced, "does not lie within the response")
    _refuse(advantages, ids, row, ~np.isfinite(advantage), "has an advantage that is not finite")
    kept = ragged(table["cutpoints"]) if mask == "cutpoints" else _all_tokens(start, end)
    position = kept.flat.astype(np.int64)
    segment = np.repeat(np.arange(row.size), kept.lengths)
    outside = (position < start[segment]) | (position >= end[segment])
    _refuse(advantages, ids, row[segment], outside, "has a cutpoint outside itself")
    by_place = np.lexsort((start, row))
    again = (np.diff(row[by_place]) == 0) & (start[by_place][1:] < end[by_place][:-1])
    _refuse(advantages, ids, row[by_place][1:], again, "overlaps another one")

    order = np.lexsort((position, row[segment]))
    return _Tokens(
        row[segment][order],
        position[order],
        advantage[segment][order],
        segment[order],
        segments=np.bincount(row, minlength=len(ids)),
        telling=np.bincount(row[np.abs(advantage) > NEGLIGIBLE], minlength=len(ids)) > 0,
    )


def _all_tokens(start: NDArray[np.int64], end: NDArray[np.int64]) -> Ragged:
    offsets = offsets_of(end - start)
    return Ragged(np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], end - start), offsets)


def _refuse(
    advantages: Artefact, ids: list[str], row: NDArray[np.int64], wrong: NDArray[np.bool_], problem: str
) -> None:
    if wrong.any():
        raise UserError(f"a segment of trajectory {ids[row[np.argmax(wrong)]]} in {advantages.path} {problem}")


def _parents(trajectories: Artefact, table: pa.Table) -> NDArray[np.int64]:
    """As `trees.parent_rows`, of stretches that all lead back to a prompt."""
    try:
        parent = parent_rows(table)
        tree_structure.depths(parent)
    except UserError as error:
        raise UserError(f"{trajectories.path}: {error}") from error
    return parent


def _prefixes(parent: NDArray[np.int64], prompts: Ragged, responses: Ragged) -> Callable[[int], NDArray[np.int32]]:
    """What comes before the tokens of a row: the prompt, and in a tree the stretches on the way to it."""
    behind: dict[int, NDArray[np.int32]] = {}  # prompt and response up to the end of a stretch that is continued

    def prefix(row: int) -> NDArray[np.int32]:
        way, above = [row], int(parent[row])
        while above >= 0 and above not in behind:
            way.append(above)
            above = int(parent[above])
        for step in way[:0:-1]:
            behind[step] = np.concatenate([behind[above] if above >= 0 else prompts[step], responses[step]])
            above = step
        return behind[above] if above >= 0 else prompts[row]

    return prefix


def _used_rows(
    table: pa.Table, tokens: _Tokens, questions: list[str], drop_uniform: bool, drop_unfinished: bool
) -> tuple[list[int], dict[str, int]]:
    """The rows that have a segment and are not to be left out, and how much is left out by why."""
    used = tokens.segments > 0
    left_out: dict[str, int] = {}
    if drop_uniform:
        telling = {questions[row] for row in np.flatnonzero(tokens.telling)}
        uniform = np.array([question not in telling for question in questions]) & used
        left_out["questions_uniform"] = len({questions[row] for row in np.flatnonzero(uniform)})
        used &= ~uniform
    if drop_unfinished:
        unfinished = np.array([reason == "length" for reason in table["finish_reason"].to_pylist()]) & used
        left_out["trajectories_unfinished"] = int(unfinished.sum())
        used &= ~unfinished
    return np.flatnonzero(used).tolist(), left_out
