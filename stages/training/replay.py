"""Decide which examples of which iterations a call trains on, so that each is used at most once in its replay window.

The *age* of an example is the number of iterations since it was sampled. Each example has one age at which it is used.
The ids alone decide it, so every call reaches the same decision, in any order and after any crash, without a record of
what was used. The examples of a question are spread over the ages 0, 1, … replay_window − 1, at most `cap` at each age,
in an order drawn from their ids. Siblings of a tree are used at the same age if the cap leaves room for all of them.
Examples without room at any age age out unused; they are counted.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.maths.randomness import random_key
from stages.training.experience import Experience


@dataclass(frozen=True)
class Selection:
    """The examples of one artefact that this call trains on.

    Attributes:
      experience: the selected examples.
      age: iterations since they were sampled.
      waiting: number of examples that a later iteration will use.
      aged_out: number of examples that were never used, counted in the last iteration of the replay window.
    """

    experience: Experience
    age: int
    waiting: int = 0
    aged_out: int = 0


def assign_ages(
    ids: Sequence[str], questions: Sequence[str], groups: Sequence[str], replay_window: int, cap: int | None
) -> NDArray[np.int64]:
    """Return the age at which each example of an artefact is used.

    For each question, every group takes the first age with room for all its examples, in the order of the groups'
    hashes. Groups that fit nowhere as a whole are then split and fill the room that is left.

    Args:
      ids, questions, groups: of each example, as in `Experience`.
      replay_window: number of ages.
      cap: maximum number of examples of a question at one age; None: no limit, so everything is used at age 0.

    Returns:
      [N] int64 in [0, replay_window]; `replay_window` means never.
    """
    ages = np.zeros(len(ids), np.int64)
    if cap is None:
        return ages
    members: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index in sorted(range(len(ids)), key=lambda index: random_key("replay", ids[index])):
        members[questions[index]][groups[index]].append(index)
    for groups_of_question in members.values():
        room = np.full(replay_window + 1, cap)
        room[replay_window] = len(ids)  # "never" has room for everything
        to_split: list[int] = []
        for group in sorted(groups_of_question, key=lambda group: random_key("replay", group)):
            indices = groups_of_question[group]
            age = int(np.argmax(room >= len(indices)))
            if age == replay_window:
                to_split += indices
            else:
                ages[indices] = age
                room[age] -= len(indices)
        for index in to_split:
            ages[index] = age = int(np.argmax(room > 0))
            room[age] -= 1
    return ages


def select_by_age(experience: Experience, age: int, replay_window: int | None, cap: int | None) -> Selection:
    """Select the examples of an artefact that are used at this age; all of them without a replay window (None)."""
    if replay_window is None:
        return Selection(experience, age)
    ages = assign_ages(experience.ids, experience.questions, experience.groups, replay_window, cap)
    chosen: list[int] = np.flatnonzero(ages == age).tolist()
    unused = int(np.count_nonzero(ages > age))
    if age == replay_window - 1:
        return Selection(experience.select(chosen), age, aged_out=unused)
    return Selection(experience.select(chosen), age, waiting=unused)


def limit_questions(selections: Sequence[Selection], cap: int) -> tuple[list[Selection], int]:
    """Keep at most `cap` examples of a question over all artefacts; return them and the number that is left out.

    The rule is the one of `assign_ages` with a single age. It only affects questions that are in several artefacts:
    `select_by_age` has applied the cap to each artefact.
    """
    prefixes = [f"{one.age} " for one in selections]  # one id may come back in another iteration
    ages = assign_ages(
        [prefix + name for prefix, one in zip(prefixes, selections, strict=True) for name in one.experience.ids],
        [question for one in selections for question in one.experience.questions],
        [prefix + group for prefix, one in zip(prefixes, selections, strict=True) for group in one.experience.groups],
        1,
        cap,
    )
    ends = np.cumsum([len(one.experience.ids) for one in selections])
    limited = [
        dataclasses.replace(one, experience=one.experience.select(np.flatnonzero(ages_of_one == 0).tolist()))
        for one, ages_of_one in zip(selections, np.split(ages, ends[:-1]), strict=True)
    ]
    return limited, int(np.count_nonzero(ages))


def limit_samples(selections: Sequence[Selection], maximum: int | None) -> tuple[list[Selection], int]:
    """Keep at most `maximum` examples of all artefacts together; return them and the number that is left out.

    Groups come in the order of a hash of their name and age, so that no artefact or question is preferred. The last
    group may be split.
    """
    total = sum(len(one.experience.ids) for one in selections)
    if maximum is None or total <= maximum:
        return list(selections), 0
    members: dict[tuple[int, str], list[int]] = defaultdict(list)
    for artefact, one in enumerate(selections):
        for index, group in enumerate(one.experience.groups):
            members[artefact, group].append(index)
    chosen: list[list[int]] = [[] for _ in selections]
    room = maximum
    order = sorted(members, key=lambda key: random_key("samples", selections[key[0]].age, key[1]))
    for artefact, group in order:
        taken = members[artefact, group][:room]
        chosen[artefact] += taken
        room -= len(taken)
    limited = [
        dataclasses.replace(one, experience=one.experience.select(sorted(indices)))
        for one, indices in zip(selections, chosen, strict=True)
    ]
    return limited, total - maximum
