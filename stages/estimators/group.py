"""Estimate advantages by GRPO, RLOO or Dr. GRPO: compare a response with the other responses to its question.

There is one segment per response. V at its start is the mean reward of the group (with RLOO, of the other members), V
at its end is its own reward. A group is all responses to a question, from all parts. A response that could not be
graded is not a member of its group, and has no row.

ReST-EM compares nothing: selected responses have the advantage 1, and the others have no row. `pairs` gives 1 to the
right response of a pair and −1 to the wrong one, and responses outside pairs have no row.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from stages.configs.estimate import Config, EstimatorName
from stages.core.errors import UserError
from stages.core.paths import AnyPath
from stages.core.progress import Progress
from stages.estimators import EstimatedChunk, Estimator, PreparedPart
from stages.estimators.rows import build_rows, count_questions, count_ungradable
from stages.estimators.segments import SegmentBatch, load_segments, load_whole_questions
from stages.maths.advantages import Advantages, dr_grpo, grpo, pairs, restem, rloo
from stages.maths.ragged import gather_ranges
from stages.sampling.pool import SamplerPool
from stages.shards.parts import Artefact, Part
from stages.shards.tables import encode_names, rows_by_name

METHODS: dict[EstimatorName, Callable[[ArrayLike, ArrayLike], Advantages]] = {
    "grpo": grpo,
    "rloo": rloo,
    "dr-grpo": dr_grpo,
}


RECORDED = ("estimator", "best_of")
"""Options that these estimators read."""
RECORDED_BY_SELECTION: dict[EstimatorName, tuple[str, ...]] = {
    "restem": ("estimator", "reward_threshold", "max_responses"),
    "pairs": ("estimator", "reward_threshold", "max_pairs"),
}
"""The same of those that select responses."""


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
        batch = load_segments(cutpoints, part, trajectories)
        check_one_segment_each(batch, part, options.estimator)
        _, group = load_whole_questions(cutpoints, part, trajectories, ["trajectory_id", "question_id", "reward"])
        return PreparedPart.single_chunk(batch.trajectories.num_rows, estimate(options, batch, group))

    return Estimator(options, RECORDED_BY_SELECTION.get(options.estimator, RECORDED), read)


def check_one_segment_each(batch: SegmentBatch, part: Part, estimator: str) -> None:
    """Check that every response is a single segment.

    Raises:
      UserError: a response has several segments.
    """
    cut = ~batch.segments.is_first
    if cut.any():
        name = batch.trajectories["trajectory_id"][int(batch.segments.trajectory[cut.argmax()])]
        raise UserError(
            f"--estimator {estimator} needs one segment per response, but {part.path} divides trajectory {name}: "
            "use `spo segment --partition trajectory`"
        )


def estimate(options: Config, batch: SegmentBatch, group: pa.Table) -> EstimatedChunk:
    """Estimate one row per response of a part.

    Args:
      group: columns trajectory_id, question_id and reward of all responses to the questions of the part, by question.
    """
    rewards, question = group["reward"].to_numpy().astype(np.float64), encode_names(group["question_id"])
    if options.estimator == "restem":
        result = restem(rewards, question, options.reward_threshold, options.max_responses)
    elif options.estimator == "pairs":
        result = pairs(rewards, question, options.reward_threshold, options.max_pairs)
    else:
        result = METHODS[options.estimator](rewards, question)
    own = rows_by_name(batch.trajectories["trajectory_id"], group["trajectory_id"])
    graded = ~np.isnan(rewards)
    size = np.bincount(question[graded], minlength=question.max(initial=-1) + 1)
    first = np.cumsum(size) - size  # the responses are ordered by question
    return build_rows(
        batch.rows,
        Advantages(*(values[own] for values in result)),
        gather_ranges(rewards[graded].astype(np.float32), first[question[own]], size[question[own]]),
        best_of=options.best_of,
        keep_zero=options.estimator not in RECORDED_BY_SELECTION,
        counts={**count_questions(rewards, question), **count_ungradable(rewards[own])},
    )
