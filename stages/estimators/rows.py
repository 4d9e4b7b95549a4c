"""Build rows of `schemas.ADVANTAGES` from an estimator's arrays, and count them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.core.errors import UserError
from stages.estimators import EstimatedChunk
from stages.maths.advantages import NEGLIGIBLE, Advantages
from stages.maths.ragged import Ragged, gather_ranges
from stages.maths.values import all_equal, monte_carlo_values
from stages.maths.values import best_of_n_values as value_of_best
from stages.shards.schemas import ADVANTAGES
from stages.shards.tables import list_array


def build_rows(
    cutpoints: pa.Table,
    advantages: Advantages,
    rewards: Ragged,
    *,
    std: NDArray[np.float64] | None = None,
    best_of: int | None = None,
    keep_zero: bool = True,
    counts: Mapping[str, int] = {},
) -> EstimatedChunk:
    """Build the rows of S segments.

    Args:
      cutpoints: their S rows of `schemas.CUTPOINTS`.
      advantages: [S] each.
      rewards: S ragged rows: the rewards that the value at a segment's start is the mean of; an empty row means that it
        was not estimated.
      std: [S] standard deviation of the numbers that this value is the mean of. Default: of the rewards.
      best_of: n, to add the best-of-n bonus to the advantages; None: no bonus.
      keep_zero: whether to keep rows whose advantage is 0.
      counts: further counts of the chunk.

    Returns:
      The rows of the segments whose advantage is known (not NaN), with the counts `segments` (these, before dropping),
      `zero_advantage`, `dropped` without `keep_zero`, and `segments_ungradable` where an advantage is not known.

    Raises:
      UserError: there is a bonus and a value is not a probability.
    """
    known = ~np.isnan(advantages.advantage)
    if not known.all():
        counts = {**counts, "segments_ungradable": int((~known).sum())}
        cutpoints, advantages = cutpoints.filter(pa.array(known)), Advantages(*(one[known] for one in advantages))
        rewards = gather_ranges(rewards.values, rewards.offsets[:-1][known], rewards.lengths[known])
        std = None if std is None else std[known]
    advantage = advantages.advantage
    if best_of is not None:
        advantage = advantage + best_of_bonus(cutpoints, advantages, best_of)
    values = monte_carlo_values(rewards)
    columns = {
        **{name: cutpoints[name] for name in cutpoints.column_names},
        "value_start": advantages.value_start,
        "value_end": advantages.value_end,
        "advantage": advantage,
        "num_rollouts": values.rollouts.astype(np.int32),
        "rewards": list_array(rewards, pa.float32()),
        "value_std": pa.array(values.std if std is None else std, from_pandas=True),
    }
    table = pa.table([columns[name] for name in ADVANTAGES.names], schema=ADVANTAGES.arrow)
    zero = np.abs(advantage) <= NEGLIGIBLE
    if not keep_zero:
        table = table.filter(pa.array(~zero))
    dropped = {} if keep_zero else {"dropped": zero.size - table.num_rows}
    return EstimatedChunk(table, {**counts, "segments": zero.size, "zero_advantage": int(zero.sum()), **dropped})


def best_of_bonus(cutpoints: pa.Table, advantages: Advantages, n: int) -> NDArray[np.float64]:
    """Return V_μ(end) − V_μ(start) of each segment, with V_μ = 1 − (1 − V)^n (arXiv 2505.23564, appendix C): [S].

    V_μ is the probability that the best of n attempts succeeds.

    Raises:
      UserError: a value is not a probability.
    """
    ends = np.stack([advantages.value_start, advantages.value_end])
    for values in ends:
        check_probabilities(values, cutpoints["trajectory_id"])
    start, end = value_of_best(ends.clip(0, 1), n)
    return end - start


def check_probabilities(values: NDArray[np.floating], trajectory_ids: pa.ChunkedArray) -> None:
    """Check that values or rewards are probabilities, or NaN: only then is the best of n defined.

    Raises:
      UserError: one is not; the message names its trajectory.
    """
    wrong = (values < -NEGLIGIBLE) | (values > 1 + NEGLIGIBLE)
    if wrong.any():
        i = int(wrong.argmax())
        raise UserError(
            f"--best-of needs values from 0 to 1, but trajectory {trajectory_ids[i]} has {values[i]:g}: omit --best-of"
        )


def count_questions(rewards: NDArray[np.float64], question: NDArray[np.int64]) -> dict[str, int]:
    """Count the questions, those whose responses all have the same reward, and those with one gradable response.

    Args:
      rewards, question: [N] of each response, NaN where it could not be graded; questions are numbered from 0.
    """
    equal = all_equal(rewards, question)
    alone = int((np.bincount(question[~np.isnan(rewards)], minlength=equal.size) == 1).sum())
    return {
        "questions": equal.size,
        "questions_zero_std": int(equal.sum()),
        **({"questions_alone": alone} if alone else {}),
    }


def count_ungradable(rewards: NDArray[np.floating]) -> dict[str, int]:
    """Count the responses of a chunk that could not be graded, given their rewards [N]; {} if there are none."""
    ungradable = int(np.isnan(rewards).sum())
    return {"responses_ungradable": ungradable} if ungradable else {}
