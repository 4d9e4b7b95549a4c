"""Load the segments of one part of cutpoints, joined with their trajectories and ordered by question."""

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
class SegmentBatch:
    """The segments of one part, joined with their trajectories; the trajectories of a question are adjacent.

    Attributes:
      rows: [S] rows of the cutpoints, in the order of `segments`.
      segments: [S] the same as arrays; `trajectory` is a row of `trajectories`.
      needs_value: bool [S], whether to estimate the value of the state where the segment starts; no state of a response
        that could not be graded needs one, because the response is not trained on.
      trajectories: [N] rows with trajectory_id, question_id, reference and reward.
      prompts, responses: N ragged rows of token ids, int32.
    """

    rows: pa.Table
    segments: Segments
    needs_value: np.ndarray
    trajectories: pa.Table
    prompts: Ragged
    responses: Ragged

    def rows_of(self, chunk: range) -> slice:
        """Return the slice of the segments that belong to a chunk of trajectories."""
        first, stop = np.searchsorted(self.segments.trajectory, [chunk.start, chunk.stop])
        return slice(int(first), int(stop))

    def segments_of(self, chunk: range) -> Segments:
        """Return the segments of a chunk of trajectories, with `trajectory` counted from the start of the chunk."""
        segments, rows = self.segments, self.rows_of(chunk)
        return Segments(segments.trajectory[rows] - chunk.start, segments.start[rows], segments.end[rows])

    def rewards_of(self, chunk: range) -> np.ndarray:
        """Return the rewards of a chunk of trajectories: float32 [N], NaN where one could not be graded."""
        return self.trajectories["reward"].slice(chunk.start, len(chunk)).to_numpy()


def load_segments(cutpoints: Artefact, part: Part, trajectories: Artefact) -> SegmentBatch:
    """Load one part of the cutpoints, joined with its trajectories.

    Raises:
      UserError: a segment belongs to an unknown trajectory, the segments of a response do not cover it, or the
        trajectories are nodes of trees.
    """
    columns = ["trajectory_id", "parent_id", "question_id", "prompt_token_ids", "token_ids", "reference", "reward"]
    # Part i of cutpoints made by `spo segment` refers to part i of the trajectories alone.
    aligned = part.lineage and len(trajectories.parts) == part.count
    table = trajectories.read(trajectories.parts[part.index], columns) if aligned else trajectories.read_all(columns)
    if table["parent_id"].null_count != table.num_rows:
        raise UserError(f"{trajectories.path} holds trees; expected independent responses: pass --estimator tree")
    rows = cutpoints.read(part, cutpoints.schema.names)
    owner = _find_trajectories(rows, table, part, trajectories)
    start = rows["start"].to_numpy().astype(np.int64)
    question = encode_names(table["question_id"])
    order = np.lexsort((start, owner, question[owner]))
    rows, owner, start = _take(rows, order), owner[order], start[order]
    is_first = np.diff(owner, prepend=-1) != 0
    table, trajectory = _take(table, owner[is_first]), np.cumsum(is_first) - 1
    segments = Segments(trajectory, start, rows["end"].to_numpy().astype(np.int64))
    responses = ragged(table["token_ids"])
    _check_cover(segments, responses.lengths, part)
    graded = np.asarray(pc.is_valid(table["reward"]))
    needs_value = mark_needed_values(rows, part.lineage) & graded[trajectory]
    return SegmentBatch(rows, segments, needs_value, table, ragged(table["prompt_token_ids"]), responses)


def mark_needed_values(rows: pa.Table, lineage: Lineage | None) -> np.ndarray:
    """Return for each row of cutpoints whether to estimate the value of the state where it starts: bool [S].

    Args:
      lineage: of the cutpoints; it records the partition. Without one, every value is estimated.
    """
    by_cutpoints = lineage is not None and lineage.config["partition"] == "cutpoints"
    return states_to_estimate(rows["start"].to_numpy(), ragged(rows["cutpoints"]) if by_cutpoints else None)


def load_whole_questions(
    cutpoints: Artefact, part: Part, trajectories: Artefact, columns: Sequence[str]
) -> tuple[pa.Table, pa.Table]:
    """Load a part of the cutpoints and all trajectories of its questions, from every part.

    Parts written by `spo rollout` hold whole questions. Those of another tool may not, so all of them are read.

    Args:
      columns: of the trajectories; trajectory_id and question_id must be among them.

    Returns:
      The rows of the cutpoints, and the columns of the trajectories. The order of the trajectories depends on their ids
      alone: question by question, with 10 after 9.

    Raises:
      UserError: a segment belongs to an unknown trajectory.
    """
    rows = cutpoints.read(part, cutpoints.schema.names)
    aligned = part.lineage and trajectories.lineage and len(trajectories.parts) == part.count
    table = trajectories.read(trajectories.parts[part.index], columns) if aligned else trajectories.read_all(columns)
    owner = _find_trajectories(rows, table, part, trajectories)
    questions = pc.unique(table["question_id"].take(pa.array(owner)))
    table = table.filter(pc.is_in(table["question_id"], value_set=questions))
    # Ids of one question differ in their final number: by length first, so that 10 comes after 9.
    keys = {"question": table["question_id"], "length": pc.utf8_length(table["trajectory_id"])}
    order = pc.sort_indices(
        pa.table({**keys, "id": table["trajectory_id"]}),
        [("question", "ascending"), ("length", "ascending"), ("id", "ascending")],
    )
    return rows, table.take(order)


def _find_trajectories(rows: pa.Table, table: pa.Table, part: Part, trajectories: Artefact) -> np.ndarray:
    """Return the row in `table` of the trajectory of each segment: int64 [S].

    Raises:
      UserError: a segment belongs to an unknown trajectory.
    """
    owner = rows_by_name(rows["trajectory_id"], table["trajectory_id"])
    if (owner < 0).any():
        unknown = rows["trajectory_id"][int((owner < 0).argmax())].as_py()
        raise UserError(f"{part.path} has segments of trajectory {unknown}, which is not in {trajectories.path}")
    return owner


def chunk_by_question(batch: SegmentBatch, size: int) -> list[range]:
    """Divide the trajectories into chunks of about `size` that hold whole questions.

    Equal states belong to the same question, so they are in the same chunk and are estimated once.
    """
    question = encode_names(batch.trajectories["question_id"])
    borders = [0]
    for end in [*np.flatnonzero(np.diff(question)) + 1, question.size]:
        if end - borders[-1] >= size or end == question.size:
            borders.append(int(end))
    return [range(start, stop) for start, stop in pairwise(borders) if stop > start]


def _take(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """Return these rows of a table; without a copy if they are all rows in order, as in our own artefacts."""
    return table if np.array_equal(rows, np.arange(table.num_rows)) else table.take(pa.array(rows))


def _check_cover(segments: Segments, lengths: np.ndarray, part: Part) -> None:
    """Check that the segments cover each response from its first token to its last without gaps.

    Args:
      lengths: [N] tokens of each response.

    Raises:
      UserError: they do not.
    """
    expected = np.where(segments.is_first, 0, np.roll(segments.end, 1))
    wrong = segments.start != expected
    wrong[segments.is_last] |= segments.end[segments.is_last] != lengths
    if wrong.any():
        i = int(np.argmax(wrong))
        raise UserError(
            f"the segments in {part.path} must cover each response without gaps; found tokens {segments.start[i]} to "
            f"{segments.end[i]} out of place in a response of {lengths[segments.trajectory[i]]} tokens"
        )


def check_vocabulary(batch: SegmentBatch, size: int, model: str) -> None:
    """Check that all token ids are below the vocabulary size of a model.

    Raises:
      UserError: a trajectory holds a token that the model does not know.
    """
    for tokens in (batch.prompts, batch.responses):
        unknown = tokens.flat >= size
        if unknown.any():
            position = int(unknown.argmax())
            row = int(np.searchsorted(tokens.offsets - tokens.offsets[0], position, side="right")) - 1
            raise UserError(
                f"trajectory {batch.trajectories['trajectory_id'][row]} holds token {tokens.flat[position]}, but "
                f"{model} knows {size}: pass the model that sampled the trajectories"
            )


def check_room(batch: SegmentBatch, max_tokens: int) -> None:
    """Check that rollouts from every state have at least one token left.

    Raises:
      UserError: a state is not below the limit.
    """
    too_late = batch.needs_value & (batch.segments.start >= max_tokens)
    if too_late.any():
        row = int(batch.segments.trajectory[too_late.argmax()])
        raise UserError(
            f"trajectory {batch.trajectories['trajectory_id'][row]} has {batch.responses.lengths[row]} tokens, which "
            f"leaves no room for rollouts within --max-tokens {max_tokens}: pass the limit that it was sampled with"
        )
