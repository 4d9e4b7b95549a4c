"""Owns how an estimator's numbers become rows of `schemas.ADVANTAGES`, and what is counted of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.core.errors import UserError
from stages.estimators import Estimated
from stages.maths.advantages import NEGLIGIBLE, Advantages
from stages.maths.ragged import Ragged
from stages.maths.values import all_equal, monte_carlo_values
from stages.maths.values import best_of_n_values as value_of_best
from stages.shards.schemas import ADVANTAGES
from stages.shards.tables import list_array


def estimated(
    cutpoints: pa.Table,
    advantages: Advantages,
    rewards: Ragged,
    *,
    std: NDArray[np.float64] | None = None,
    best_of: int | None = None,
    keep_zero: bool = True,
    counts: Mapping[str, int] = {},
) -> Estimated:
    """The rows of S segments.

    Args:
      cutpoints: their S rows of `schemas.CUTPOINTS`.
      advantages: [S] each.
      rewards: S ragged rows, the rewards that the value at a segment's start was estimated from; none: it was not.
      std: [S] how far apart the numbers lie that this value is the mean of; left out, that of the rewards.
      best_of: adds the best-of-n bonus to the advantages.
      keep_zero: whether rows without advantage are kept.
      counts: further ones.

    Returns:
      the rows; how many there were (`segments`), and of these without advantage (`zero_advantage`) and for that left
      out (`dropped`).

    Raises:
      UserError: the bonus is asked for and a value is no probability.
    """
    advantage = (
        advantages.advantage if best_of is None else advantages.advantage + bonus(cutpoints, advantages, best_of)
    )
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
    return Estimated(table, {**counts, "segments": zero.size, "zero_advantage": int(zero.sum()), **dropped})


def bonus(cutpoints: pa.Table, advantages: Advantages, n: int) -> NDArray[np.float64]:
    """V_μ(end) − V_μ(start), what each segment does for the best of n attempts (arXiv 2505.23564, appendix C): [S].

    Raises:
      UserError: a value that is no probability, naming where.
    """
    ends = np.stack([advantages.value_start, advantages.value_end])
    for values in ends:
        check_chances(values, cutpoints["trajectory_id"])
    start, end = value_of_best(ends.clip(0, 1), n)
    return end - start


def check_chances(values: NDArray[np.floating], trajectory_ids: pa.ChunkedArray) -> None:
    """Raises UserError for a value of a trajectory, or reward, that is no chance: the best of n is not defined."""
    wrong = ~((values >= -NEGLIGIBLE) & (values <= 1 + NEGLIGIBLE))
    if wrong.any():
        i = int(wrong.argmax())
        raise UserError(
            f"--best-of takes values for chances, from 0 to 1, but trajectory {trajectory_ids[i]} has {values[i]:g}: "
            "leave --best-of out"
        )


def count_questions(rewards: NDArray[np.float64], question: NDArray[np.int64]) -> dict[str, int]:
    """Counts: how many questions (numbers from 0) there are, and of how many all responses earned the same."""
    equal = all_equal(rewards, question)
    return {"questions": equal.size, "questions_zero_std": int(equal.sum())}
