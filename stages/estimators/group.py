"""The group estimators, GRPO, RLOO and Dr. GRPO: a response is compared with the others to its question.

One segment per response. V at its start is the mean reward of the group (or of its other members), V at its end its own
reward. A group is all responses to a question, in whichever part they lie.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from stages.configs.estimate import EstimatorName, EstimatorOptions, select_settings
from stages.core.config import option
from stages.core.errors import UserError
from stages.core.progress import Progress
from stages.estimators import Estimated, Estimator, Portion
from stages.estimators.rows import count_questions, estimated
from stages.estimators.segments import Cuts, load_cuts, load_whole_questions
from stages.maths.advantages import Advantages, dr_grpo, grpo, rloo
from stages.maths.ragged import gather_ranges
from stages.sampling.pool import SamplerPool
from stages.shards.parts import Artefact, Part
from stages.shards.tables import encode_names, rows_by_name

METHODS: dict[EstimatorName, Callable[[ArrayLike, ArrayLike], Advantages]] = {
    "grpo": grpo,
    "rloo": rloo,
    "dr-grpo": dr_grpo,
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options that these estimators read."""

    estimator: EstimatorName = option("As given.")
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
        cuts = load_cuts(cutpoints, part, trajectories)
        check_whole(cuts, part, settings.estimator)
        _, group = load_whole_questions(cutpoints, part, trajectories, ["trajectory_id", "question_id", "reward"])
        return Portion.at_once(cuts.trajectories.num_rows, estimate(settings, cuts, group))

    return Estimator(settings, read)


def check_whole(cuts: Cuts, part: Part, estimator: str) -> None:
    """Raises UserError for a response of more than one segment."""
    cut = ~cuts.segments.is_first
    if cut.any():
        name = cuts.trajectories["trajectory_id"][int(cuts.segments.trajectory[cut.argmax()])]
        raise UserError(
            f"--estimator {estimator} gives a response one advantage, but {part.path} cuts trajectory {name} into "
            f"segments: cut with `spo segment --partition trajectory`"
        )


def estimate(settings: Settings, cuts: Cuts, group: pa.Table) -> Estimated:
    """One row per response of a part.

    Args:
      group: trajectory_id, question_id and reward of all responses to its questions, question by question.
    """
    rewards, question = group["reward"].to_numpy().astype(np.float64), encode_names(group["question_id"])
    result = METHODS[settings.estimator](rewards, question)
    own = rows_by_name(cuts.trajectories["trajectory_id"], group["trajectory_id"])
    first, size = np.searchsorted(question, question[own]), np.bincount(question)[question[own]]
    return estimated(
        cuts.rows,
        Advantages(*(values[own] for values in result)),
        gather_ranges(rewards.astype(np.float32), first, size),
        best_of=settings.best_of,
        counts=count_questions(rewards, question),
    )
