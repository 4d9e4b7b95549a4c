"""The segments of one part of cutpoints, joined with what is needed of their trajectories, question by question."""

# pyarrow.compute makes its functions at import time:
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.core.errors import UserError
from stages.maths.advantages import states_to_estimate
from stages.maths.partition import Segments
from stages.maths.ragged import Ragged
from stages.shards.lineage import Lineage
from stages.shards.parts import Artefact, Part
from stages.shards.tables import encode_names, ragged, rows_by_name


@dataclass(frozen=True)
class Cuts:
    """The segments of one part with what is needed of their trajectories, the trajectories of a question side by side.

    Attributes:
      rows: [S] the cutpoints rows, in the order of `segments`.
      segments: the same as numbers; `trajectory` counts the rows of `trajectories`.
      wanted: bool [S], whether the value of the segment's start state is to be estimated.
      trajectories: [N] question_id, reference, reward.
      prompts, responses: N ragged rows of token ids, int32.
    """

    rows: pa.Table
    segments: Segments
    wanted: np.ndarray
    trajectories: pa.Table
    prompts: Ragged
    responses: Ragged

    def rows_of(self, chunk: range) -> slice:
        """Which segments belong to a stretch of trajectories."""
        first, stop = np.searchsorted(self.segments.trajectory, [chunk.start, chunk.stop])
        return slice(int(first), int(stop))

    def segments_of(self, chunk: range) -> Segments:
        """The segments of a stretch of trajectories, which are counted from 0."""
        of, rows = self.segments, self.rows_of(chunk)
        return Segments(of.trajectory[rows] - chunk.start, of.start[rows], of.end[rows])

    def rewards_of(self, chunk: range) -> np.ndarray:
        """float32 [chunk], the rewards of a stretch of trajectories."""
        return self.trajectories["reward"].slice(chunk.start, len(chunk)).to_numpy()


def load_cuts(cutpoints: Artefact, part: Part, trajectories: Artefact) -> Cuts:
    """One part of the cutpoints, joined with its trajectories.

    Raises:
      UserError: segments of unknown trajectories, or that do not cover a response; stretches of trees.
    """
    columns = ["trajectory_id", "parent_id", "question_id", "prompt_token_ids", "token_ids", "reference", "reward"]
    aligned = part.lineage and len(trajectories.parts) == part.count
    table = trajectories.read(trajectories.parts[part.index], columns) if aligned else trajectories.read_all(columns)
    if table["parent_id"].null_count != table.num_rows:
        raise UserError(f"{trajectories.path} holds stretches of trees: --estimator tree takes them")
    rows = cutpoints.read(part, cutpoints.schema.names)
    owner = _owners(rows, table, part, trajectories)
    start = rows["start"].to_numpy().astype(np.int64)
    question = encode_names(table["question_id"])
    order = np.lexsort((start, owner, question[owner]))
    rows, owner, start = _take(rows, order), owner[order], start[order]
    begins = np.diff(owner, prepend=-1) != 0
    table, trajectory = _take(table, owner[begins]), np.cumsum(begins) - 1
    segments = Segments(trajectory, start, rows["end"].to_numpy().astype(np.int64))
    responses = ragged(table["token_ids"])
    _check_cover(segments, responses.lengths, part)
    return Cuts(rows, segments, wanted_states(rows, part.lineage), table, ragged(table["prompt_token_ids"]), responses)


def wanted_states(rows: pa.Table, lineage: Lineage | None) -> np.ndarray:
    """bool [S], whether the value of the start state of each of these cutpoints rows is to be estimated.

    Args:
      lineage: of the cutpoints, which tells the partition; without one every start is wanted.
    """
    by_cutpoints = lineage is not None and lineage.config["partition"] == "cutpoints"
    return states_to_estimate(rows["start"].to_numpy(), ragged(rows["cutpoints"]) if by_cutpoints else None)


def load_whole_questions(
    cutpoints: Artefact, part: Part, trajectories: Artefact, columns: Sequence[str]
) -> tuple[pa.Table, pa.Table]:
    """A part of the cutpoints, and all trajectories of its questions, wherever they lie.

    Parts that `spo rollout` wrote hold whole questions; what another tool wrote may not, so all of it is read.

    Returns:
      the cutpoints rows, and these columns of the trajectories (trajectory_id and question_id among them) in an order
      that follows from their ids alone: question by question, 10 after 9.

    Raises:
      UserError: segments of unknown trajectories.
    """
    rows = cutpoints.read(part, cutpoints.schema.names)
    ours = part.lineage and trajectories.lineage and len(trajectories.parts) == part.count
    table = trajectories.read(trajectories.parts[part.index], columns) if ours else trajectories.read_all(columns)
    owner = _owners(rows, table, part, trajectories)
    questions = pc.unique(table["question_id"].take(pa.array(owner)))
    table = table.filter(pc.is_in(table["question_id"], value_set=questions))
    keys = {"question": table["question_id"], "length": pc.utf8_length(table["trajectory_id"])}
    order = pc.sort_indices(
        pa.table({**keys, "id": table["trajectory_id"]}),
        [("question", "ascending"), ("length", "ascending"), ("id", "ascending")],
    )
    return rows, table.take(order)


def _owners(rows: pa.Table, table: pa.Table, part: Part, trajectories: Artefact) -> np.ndarray:
    """The row of the trajectory that each segment belongs to: int64 [S].

    Raises:
      UserError: segments of unknown trajectories.
    """
    owner = rows_by_name(rows["trajectory_id"], table["trajectory_id"])
    if (owner < 0).any():
        unknown = rows["trajectory_id"][int((owner < 0).argmax())].as_py()
        raise UserError(f"{part.path} cuts trajectory {unknown}, which is not in {trajectories.path}")
    return owner


def chunk_by_question(cuts: Cuts, size: int) -> list[range]:
    """Trajectories in stretches of about `size` that never divide a question, so that equal states meet."""
    question = encode_names(cuts.trajectories["question_id"])
    borders = [0]
    for end in [*np.flatnonzero(np.diff(question)) + 1, question.size]:
        if end - borders[-1] >= size or end == question.size:
            borders.append(int(end))
    return [range(start, stop) for start, stop in pairwise(borders) if stop > start]


def _take(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """These rows of a table; without a copy where they are all of them in order, as in what our own stages write."""
    return table if np.array_equal(rows, np.arange(table.num_rows)) else table.take(pa.array(rows))


def _check_cover(segments: Segments, lengths: np.ndarray, part: Part) -> None:
    """Segments must cover each response from its first token to its last, without a gap."""
    expected = np.where(segments.is_first, 0, np.roll(segments.end, 1))
    wrong = segments.start != expected
    wrong[segments.is_last] |= segments.end[segments.is_last] != lengths
    if wrong.any():
        i = int(np.argmax(wrong))
        raise UserError(
            f"the segments in {part.path} must cover each response without gaps; one of {segments.start[i]} to "
            f"{segments.end[i]} does not fit a response of {lengths[segments.trajectory[i]]} tokens"
        )


def check_vocabulary(cuts: Cuts, size: int, model: str) -> None:
    """Raises UserError for a token that the model to sample with does not know."""
    for batch in (cuts.prompts, cuts.responses):
        unknown = batch.flat >= size
        if unknown.any():
            token = int(unknown.argmax())
            row = int(np.searchsorted(batch.offsets - batch.offsets[0], token, side="right")) - 1
            raise UserError(
                f"trajectory {cuts.trajectories['trajectory_id'][row]} holds token {batch.flat[token]}, but {model} "
                f"knows {size}: it was sampled by a model with another vocabulary"
            )


def check_room(cuts: Cuts, max_tokens: int) -> None:
    """Raises UserError if a state does not lie before the limit: its rollouts would have no token left."""
    late = cuts.wanted & (cuts.segments.start >= max_tokens)
    if late.any():
        row = int(cuts.segments.trajectory[late.argmax()])
        raise UserError(
            f"trajectory {cuts.trajectories['trajectory_id'][row]} has {cuts.responses.lengths[row]} tokens, which "
            f"leaves no room for rollouts within --max-tokens {max_tokens}: pass the limit that it was sampled with"
        )
