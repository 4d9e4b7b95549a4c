"""Owns how many rollouts the states of a question may have: which questions need none, and what a budget leaves each.

Both follow from the whole artefact, never from one part of it, so however the work is split it comes out the same.
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
from stages.estimators.segments import wanted_states
from stages.maths.allocation import split_in_proportion
from stages.maths.intervals import wilson_width
from stages.maths.randomness import random_key
from stages.shards.parts import Artefact
from stages.shards.tables import ragged, rows_by_name


@dataclass(frozen=True)
class Allotment:
    """How many rollouts are drawn from a state.

    Attributes:
      least, most: from every state of a question that is in doubt. Equal: that many, whatever their rewards.
      width, confidence: of the Wilson interval, wider than which more are drawn.
      decided: the mean reward of each question whose responses leave no doubt; its states get no rollouts.
      budget: rollouts of each other question in all; None: without limit.
    """

    least: int
    most: int
    width: float
    confidence: float
    decided: Mapping[str, float]
    budget: Mapping[str, int] | None

    @property
    def is_adaptive(self) -> bool:
        """Whether the number depends on the rewards."""
        return self.least < self.most


def fixed(count: int) -> Allotment:
    """The same number of rollouts from every state."""
    return Allotment(count, count, 1.0, 0.95, {}, None)


def adaptive(
    least: int,
    most: int,
    width: float,
    confidence: float,
    budget: int | None,
    cutpoints: Artefact,
    trajectories: Artefact,
) -> Allotment:
    """Between `least` and `most` rollouts, none for the questions that the responses themselves decide.

    A question is decided if all its responses earned 0, or all 1, and the Wilson interval of their mean is at most
    `width` wide. V is then taken to be that mean at every state, and no segment has an advantage.

    Raises:
      UserError: rewards outside [0, 1], a budget that leaves some state with fewer than `least`.
    """
    table = trajectories.read_all(["trajectory_id", "question_id", "reward"])
    outside = np.asarray(pc.or_(pc.less(table["reward"], 0), pc.greater(table["reward"], 1)))
    if outside.any():
        row = int(outside.argmax())
        raise out_of_range(table["reward"][row].as_py(), f"trajectory {table['trajectory_id'][row]}")
    groups = table.group_by("question_id").aggregate([("reward", "min"), ("reward", "max"), ("reward", "count")])
    low, high, count = (groups[f"reward_{name}"].to_numpy() for name in ("min", "max", "count"))
    sure = (low == high) & np.isin(low, (0, 1)) & (wilson_width(low, count, confidence) <= width)
    names = groups["question_id"].to_pylist()
    decided = {name: float(low[i]) for i, name in enumerate(names) if sure[i]}
    shared = _share(budget, least, decided, cutpoints, trajectories) if budget is not None else None
    return Allotment(least, most, width, confidence, decided, shared)


def _share(
    budget: int, least: int, decided: Mapping[str, float], cutpoints: Artefact, trajectories: Artefact
) -> dict[str, int]:
    """The budget in proportion to the states of each question that is in doubt; in the order of their ids."""
    states = {name: count for name, count in _count_states(cutpoints, trajectories).items() if name not in decided}
    names = sorted(states)
    needed = least * sum(states.values())
    if budget < needed:
        raise UserError(
            f"--budget {budget} is too small: {sum(states.values())} states of {len(names)} questions take "
            f"{needed} rollouts at {least} each. Raise it, or lower the least of --rollouts"
        )
    granted = split_in_proportion(budget, np.array([states[name] for name in names], np.int64))
    return dict(zip(names, granted.tolist(), strict=True))


def _count_states(cutpoints: Artefact, trajectories: Artefact) -> Counter[str]:
    """How many states of each question are to be estimated, in all parts; equal ones once, as when they are drawn."""
    rows = cutpoints.read_all(["trajectory_id", "start", "cutpoints"])
    table = trajectories.read_all(["trajectory_id", "question_id", "prompt_token_ids", "token_ids"])
    start, owner = rows["start"].to_numpy(), rows_by_name(rows["trajectory_id"], table["trajectory_id"])
    wanted = wanted_states(rows, cutpoints.lineage) & (owner >= 0)  # what is unknown is refused with its own part
    questions = table["question_id"].to_pylist()
    prompts, responses = ragged(table["prompt_token_ids"]), ragged(table["token_ids"])
    found = {
        (questions[row], random_key(prompts[row].tobytes(), responses[row][:end].tobytes()))
        for row, end in zip(owner[wanted].tolist(), start[wanted].tolist(), strict=True)
    }
    return Counter(question for question, _ in found)


def out_of_range(reward: float, where: str) -> UserError:
    """Intervals are of rewards from 0 to 1."""
    return UserError(
        f"--rollouts MIN..MAX takes rewards for chances, from 0 to 1; {where} earned {reward:g}: pass one number of "
        "rollouts"
    )
