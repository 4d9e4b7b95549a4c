"""Determine how many rollouts each state may have: which questions need none, and how a budget is divided.

Both are computed from the whole artefact, not from one part, so the result does not depend on the sharding.
"""

# pyarrow.compute makes its functions at import time:
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from stages.core.errors import UserError
from stages.estimators.segments import mark_needed_values
from stages.maths.allocation import split_in_proportion
from stages.maths.intervals import wilson_width
from stages.maths.randomness import random_key
from stages.shards.parts import Artefact
from stages.shards.tables import ragged, rows_by_name


@dataclass(frozen=True)
class RolloutBudget:
    """How many rollouts are sampled from each state.

    Attributes:
      minimum, maximum: rollouts per state of an undecided question. If equal, the number is fixed.
      width: sample more rollouts while the Wilson interval of a state's value is wider than this.
      confidence: confidence level of the interval.
      decided: question id → mean reward, for questions whose responses agree; their states get no rollouts.
      limits: question id → maximum number of rollouts over all its states; None: no limit.
    """

    minimum: int
    maximum: int
    width: float
    confidence: float
    decided: Mapping[str, float]
    limits: Mapping[str, int] | None

    @property
    def is_adaptive(self) -> bool:
        """Return whether the number of rollouts depends on their rewards."""
        return self.minimum < self.maximum


def fixed_budget(count: int) -> RolloutBudget:
    """Return a budget of `count` rollouts per state, whatever their rewards."""
    return RolloutBudget(count, count, 1.0, 0.95, {}, None)  # no interval is wider than 1


def adaptive_budget(
    minimum: int,
    maximum: int,
    width: float,
    confidence: float,
    total: int | None,
    cutpoints: Artefact,
    trajectories: Artefact,
) -> RolloutBudget:
    """Return a budget of `minimum` to `maximum` rollouts per state, and none for questions that are decided.

    A question is decided if all its responses have reward 0, or all have reward 1, and the Wilson interval of their
    mean is at most `width` wide. Then V is this mean at every state, and no segment has an advantage. Responses that
    could not be graded do not count.

    Args:
      total: maximum number of rollouts over all questions; None: no limit.

    Raises:
      UserError: a reward is outside [0, 1], or `total` is less than `minimum` rollouts per state.
    """
    table = trajectories.read_all(["trajectory_id", "question_id", "reward"])
    outside = np.asarray(pc.or_(pc.less(table["reward"], 0), pc.greater(table["reward"], 1)).fill_null(False))
    if outside.any():
        row = int(outside.argmax())
        raise out_of_range(table["reward"][row].as_py(), f"trajectory {table['trajectory_id'][row]}")
    groups = table.group_by("question_id").aggregate([("reward", "min"), ("reward", "max"), ("reward", "count")])
    low, high, count = (groups[f"reward_{name}"].to_numpy() for name in ("min", "max", "count"))
    # With equal rewards, low is their mean.
    is_decided = (low == high) & np.isin(low, (0, 1)) & (wilson_width(low, count, confidence) <= width)
    names = groups["question_id"].to_pylist()
    decided = {name: float(low[i]) for i, name in enumerate(names) if is_decided[i]}
    limits = None if total is None else _split_budget(total, minimum, decided, cutpoints, trajectories)
    return RolloutBudget(minimum, maximum, width, confidence, decided, limits)


def _split_budget(
    total: int, minimum: int, decided: Mapping[str, float], cutpoints: Artefact, trajectories: Artefact
) -> dict[str, int]:
    """Divide the budget among the undecided questions in proportion to their numbers of states.

    Raises:
      UserError: the budget is less than `minimum` rollouts per state.
    """
    states = {name: count for name, count in _count_states(cutpoints, trajectories).items() if name not in decided}
    names = sorted(states)
    needed = minimum * sum(states.values())
    if total < needed:
        raise UserError(
            f"--budget {total} is too small: {sum(states.values())} states of {len(names)} questions need {needed} "
            f"rollouts at {minimum} each; raise --budget or lower MIN of --rollouts"
        )
    granted = split_in_proportion(total, np.array([states[name] for name in names], np.int64))
    return dict(zip(names, granted.tolist(), strict=True))


def _count_states(cutpoints: Artefact, trajectories: Artefact) -> Counter[str]:
    """Return the number of states to estimate per question, over all parts; equal states of a question count once."""
    rows = cutpoints.read_all(["trajectory_id", "start", "cutpoints"])
    table = trajectories.read_all(["trajectory_id", "question_id", "prompt_token_ids", "token_ids", "reward"])
    table = table.filter(pc.is_valid(table["reward"]))  # other responses are not trained on
    start, owner = rows["start"].to_numpy(), rows_by_name(rows["trajectory_id"], table["trajectory_id"])
    # Segments of unknown trajectories (owner −1) are an error when their own part is read.
    needs_value = mark_needed_values(rows, cutpoints.lineage) & (owner >= 0)
    questions = table["question_id"].to_pylist()
    prompts, responses = ragged(table["prompt_token_ids"]), ragged(table["token_ids"])
    # A hash stands for the tokens of the prefix, to save memory.
    states = {
        (questions[row], random_key(prompts[row].tobytes(), responses[row][:end].tobytes()))
        for row, end in zip(owner[needs_value].tolist(), start[needs_value].tolist(), strict=True)
    }
    return Counter(question for question, _ in states)


def out_of_range(reward: float, where: str) -> UserError:
    """Return the error for a reward that the Wilson interval, which holds for values in [0, 1], does not allow."""
    return UserError(
        f"--rollouts MIN..MAX needs rewards from 0 to 1; {where} has reward {reward:g}: pass a fixed number of rollouts"
    )
