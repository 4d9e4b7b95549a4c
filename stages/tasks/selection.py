"""The questions of a split that a stage uses: consecutive ones in the order of the data or in a shuffled order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from stages.core.errors import UserError
from stages.maths.randomness import random_key
from stages.tasks import MAX_FINITE_SPLIT, Question, Split, Task


def select_questions(
    task: Task, split: Split, count: int | None, skip: int = 0, shuffle_seed: int | None = None
) -> Sequence[Question]:
    """Return the next `count` questions after the first `skip`.

    With a seed, the questions come in a shuffled order. After the last question a new shuffled order starts, so that
    iteration i of a run can skip i · count questions however small the data is. A selection never contains a question
    twice.

    Args:
      count: number of questions; None takes all that are left, or with a seed as many as the split has.
      skip: number of questions to pass over.
      shuffle_seed: seed of the shuffled orders; None keeps the order of the data.

    Raises:
      UserError: the split has too few questions, or it is an endless stream and is to be shuffled or taken whole.
    """
    questions = task.questions(split)
    if shuffle_seed is None:
        return _select_in_order(task, split, questions, count, skip)
    return _select_shuffled(task, split, questions, count, skip, shuffle_seed)


def select_replacements(
    task: Task, split: Split, count: int, skip: int, shuffle_seed: int | None, rounds: int
) -> list[Sequence[Question]]:
    """Return the questions that follow a selection, in rounds of `count`: question i of a round may replace question i.

    The last rounds hold fewer questions, or none, where the split has no more.

    Args:
      count, skip, shuffle_seed: of the selection, as `select_questions` takes them.
    """
    total = len(task.questions(split))
    most = total - (skip if shuffle_seed is None else 0)
    following = select_questions(task, split, min(count * (1 + rounds), most), skip, shuffle_seed)[count:]
    return [following[i * count : (i + 1) * count] for i in range(rounds)]


def _select_in_order(
    task: Task, split: Split, questions: Sequence[Question], count: int | None, skip: int
) -> Sequence[Question]:
    total = len(questions)
    size = total - skip if count is None else count
    if skip + size > total or size <= 0:
        flags = f"--skip-questions {skip}" + (f" and --num-questions {count}" if count else "")
        raise UserError(f"the {split} split of {task.name} has {total:,} questions; {flags} needs more")
    if count is None and size > MAX_FINITE_SPLIT:
        raise UserError(f"the {split} split of {task.name} is an endless stream: pass --num-questions")
    return questions[skip : skip + size]


def _select_shuffled(
    task: Task, split: Split, questions: Sequence[Question], count: int | None, skip: int, seed: int
) -> Sequence[Question]:
    total = len(questions)
    name = f"the {split} split of {task.name}"
    if total > MAX_FINITE_SPLIT:
        raise UserError(f"{name} is an endless stream in random order: omit --shuffle-seed")
    size = total if count is None else count
    if size > total:
        raise UserError(f"{name} has {total:,} questions; --num-questions {size:,} needs more")
    chosen: dict[int, None] = {}  # a dict, because it is an ordered set
    position = skip
    while len(chosen) < size:  # a selection that spans two orders may meet a question twice and takes it once
        epoch, place = divmod(position, total)
        chosen[int(_shuffled_order(total, seed, epoch)[place])] = None
        position += 1
    return [questions[index] for index in chosen]


@lru_cache(maxsize=4)
def _shuffled_order(total: int, seed: int, epoch: int) -> np.ndarray:
    """Return a permutation of range(total), int64 [total]."""
    return np.random.default_rng(random_key("question order", seed, epoch)).permutation(total)
