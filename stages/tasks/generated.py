"""What tasks that generate their questions share: the split of a question, and a sequence made on access."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import overload

from stages.core.errors import UserError
from stages.tasks import Question, Split

_SPLIT_OF_REMAINDER: tuple[Split, ...] = ("train", "train", "validation", "test")


def split_of_content(content: str) -> Split:
    """Return the split of a question by a digest of its content: half go to train, a quarter to validation and to test.

    The split depends on nothing else, so no question is in two splits, whatever seed or index it was generated from.
    """
    return _SPLIT_OF_REMAINDER[hashlib.blake2b(content.encode(), digest_size=1).digest()[0] % 4]


def reject_data(task: str, data: str | None) -> None:
    """Check that a task that generates its questions has no data.

    Raises:
      UserError: it has data.
    """
    if data is not None:
        raise UserError(
            f"task {task} generates its own questions and takes no --data; got {data}. If the data is for another task "
            f"of the command, name that task: --data TASK={data}"
        )


class GeneratedQuestions(Sequence[Question]):
    """A sequence of questions, each generated from its index on access."""

    def __init__(self, length: int, generate: Callable[[int], Question]):
        self._length = length
        self._generate = generate

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Question: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Question]: ...
    def __getitem__(self, index: int | slice) -> Question | Sequence[Question]:
        # Indexing a range resolves negative indexes and slices, and raises IndexError.
        numbers = range(self._length)[index]
        return self._generate(numbers) if isinstance(numbers, int) else [self._generate(number) for number in numbers]
