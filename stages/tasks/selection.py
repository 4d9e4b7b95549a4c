"""Which questions of a split a stage takes: a stretch of the data's own order, or of an order drawn from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from stages.core.errors import UserError
from stages.maths.randomness import random_key
from stages.tasks import MAX_FINITE_SPLIT, Question, Split, Task


def select(
    task: Task, split: Split, count: int | None, skip: int = 0, shuffle_seed: int | None = None
) -> Sequence[Question]:
    """`count` questions after passing over `skip`; all that are left if count is None.

    With a seed the questions come in a drawn order, and past the last one a newly drawn order begins, so that
    iteration i of a run can skip i · count however small the data is. A selection never holds a question twice.

    Raises:
      UserError: the split has fewer questions than are asked for, or is an endless stream and no count is given.
    """
    questions = task.questions(split)
    total = len(questions)
    asked = total - skip if count is None else count
    if shuffle_seed is None:
        if skip + asked > total or asked <= 0:
            wanted = f"--skip-questions {skip}" + (f" and --num-questions {count}" if count else "")
            raise UserError(f"the {split} split of {task.name} has {total:,} questions; {wanted} asks for more")
        if count is None and asked > MAX_FINITE_SPLIT:
            raise UserError(f"the {split} split of {task.name} is a stream without end: pass --num-questions")
        return questions[skip : skip + asked]
    if total > MAX_FINITE_SPLIT:
        raise UserError(f"the {split} split of {task.name} is a stream in random order: leave out --shuffle-seed")
    asked = total if count is None else count
    if asked > total:
        raise UserError(f"the {split} split of {task.name} has {total:,} questions; --num-questions asks for {asked:,}")
    chosen: dict[int, None] = {}
    position = skip
    while len(chosen) < asked:  # where one order ends and the next begins, a question may come up twice
        epoch, place = divmod(position, total)
        chosen[int(_order(total, shuffle_seed, epoch)[place])] = None
        position += 1
    return [questions[index] for index in chosen]


@lru_cache(maxsize=4)
def _order(total: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng(random_key("question order", seed, epoch)).permutation(total)
