"""Owns what tasks that make their own questions share: the split that a question belongs to, and a stream of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import overload

from stages.core.errors import UserError
from stages.tasks import Question, Split

_SPLIT_OF_QUARTER: tuple[Split, ...] = ("train", "train", "validation", "test")


def split_of(content: str) -> Split:
    """Half of all contents are for training, a quarter each for validation and test, by a digest of the content.

    So no question of one split is ever in another, whatever seed or index it was drawn for.
    """
    return _SPLIT_OF_QUARTER[hashlib.blake2b(content.encode(), digest_size=1).digest()[0] % 4]


def refuse_data(task: str, data: str | None) -> None:
    """For a task that makes its own questions.

    Raises:
      UserError: data was given.
    """
    if data is not None:
        raise UserError(
            f"task {task} makes its own questions and takes no --data; got {data}. Beside other tasks, name the one "
            f"that it is meant for: --data TASK={data}"
        )


class Stream(Sequence[Question]):
    """The questions of a split, each made from its index when it is asked for."""

    def __init__(self, length: int, make: Callable[[int], Question]):
        self._length = length
        self._make = make

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Question: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Question]: ...
    def __getitem__(self, index: int | slice) -> Question | Sequence[Question]:
        numbers = range(self._length)[index]
        return self._make(numbers) if isinstance(numbers, int) else [self._make(number) for number in numbers]
