"""Task `game24`: make 24 from four numbers, each used once, with + - * / and parentheses.

    prompt    Use each of the numbers 4, 5, 6 and 10 exactly once, with +, -, *, / and parentheses, to make 24. …
    response  (10 - 4) * 5 - 6 = 24, so \\boxed{(10 - 4) * 5 - 6}.

Without data the questions are all 1,362 solvable hands of four numbers from 1 to 13, each in the split that a digest of
the numbers gives it. With data they are the file's, in its order: a column `Puzzles` (`4 5 6 10`) or `numbers`. The
expression in the response's last box is parsed and worked out in fractions, never evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import combinations, combinations_with_replacement

from stages.core import storage
from stages.core.errors import UserError
from stages.tasks import Question, Split, Verdict
from stages.tasks.countdown import verify_countdown
from stages.tasks.data import DataSplits, open_data
from stages.tasks.generated import GeneratedQuestions, split_of_content
from stages.tasks.templates import TEMPLATES

TARGET = 24
_LARGEST = 13
_COLUMNS = ("Puzzles", "puzzle", "numbers", "nums")

Numbers = tuple[int, ...]


@dataclass(frozen=True)
class Game24:
    """The task, over the puzzles of some data or over all that there are."""

    data: DataSplits | None = field(repr=False)
    name: str = "game24"
    template: str = TEMPLATES["plain"]
    chat_message: str = TEMPLATES["plain"]

    @cached_property
    def digest(self) -> str:
        return storage.digest(f"{self.name} {self.data.digest if self.data else _LARGEST}".encode())

    def questions(self, split: Split) -> Sequence[Question]:
        if self.data is None:
            return _questions([numbers for numbers in _solvable() if split_of_content(_name(numbers)) == split])
        placed = [
            (where, _read_numbers(value, where))
            for where, row in self.data.rows(split, _choose)
            for value in row.values()
        ]
        places: dict[Numbers, str] = {}
        for where, numbers in placed:
            other = places.setdefault(tuple(sorted(numbers)), where)
            if other != where:
                raise UserError(f"{where} has the numbers of {other}: {_name(numbers)}; give each puzzle once")
        if not placed:
            raise UserError(f"task has no questions: the {split} split of {self.data.source} is empty")
        return _questions([numbers for _, numbers in placed])

    def verify(self, response: str, reference: str) -> Verdict:
        return verify_countdown(response, [int(number) for number in reference.split()], TARGET)


def make_task(name: str, data: str | None, options: Mapping[str, str]) -> Game24:
    """The task, over a file or directory where one is given.

    Raises:
      UserError: an option (it has none), or no data there.
    """
    if options:
        raise UserError(f"task {name} has no options; got --task-arg {next(iter(options))}")
    return Game24(open_data(data, name) if data is not None else None)


def _questions(puzzles: Sequence[Numbers]) -> Sequence[Question]:
    return GeneratedQuestions(len(puzzles), lambda index: _question(puzzles[index]))


def _question(numbers: Numbers) -> Question:
    listed = ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"
    expression = _solve(tuple(sorted(numbers)))
    return Question(
        id=f"game24-{_name(numbers)}",
        prompt=f"Use each of the numbers {listed} exactly once, with +, -, *, / and parentheses, to make {TARGET}. "
        "Put the expression within \\boxed{}.",
        reference=" ".join(map(str, numbers)),
        solution=f" {expression} = {TARGET}, so \\boxed{{{expression}}}." if expression else None,
    )


def _name(numbers: Numbers) -> str:
    return "-".join(map(str, numbers))


def _choose(there: Sequence[str], where: str) -> list[str]:
    for name in _COLUMNS:
        if name in there:
            return [name]
    raise UserError(f"{where} has no column {' or '.join(_COLUMNS)}; found {', '.join(there)}")


def _read_numbers(value: object, where: str) -> Numbers:
    words = list(value) if isinstance(value, list) else re.split(r"[,\s]+", str(value).strip(" []"))
    if not 2 <= len(words) <= 4 or not all(re.fullmatch(r"[0-9]{1,9}", str(word)) for word in words):
        raise UserError(f"{where}: a puzzle is two to four whole numbers, separated by spaces; got {value!r}")
    return tuple(int(word) for word in words)


@lru_cache(maxsize=1)
def _solvable() -> list[Numbers]:
    hands = combinations_with_replacement(range(1, _LARGEST + 1), 4)
    return [numbers for numbers in hands if _solve(numbers)]


@lru_cache(maxsize=4096)
def _solve(numbers: Numbers) -> str | None:
    """An expression that makes the target; None if there is none.

    Of the two halves that its last operation joins, one is tried at every value, and the other is looked up.
    """
    for left, right in _halves(numbers):
        there = _values(right)
        for value, text in _values(left).items():
            needed = [("{} + {}", TARGET - value), ("{} - {}", value - TARGET), ("{1} - {0}", TARGET + value)]
            if value:
                needed += [("{} * {}", TARGET / value), ("{} / {}", value / TARGET), ("{1} / {0}", TARGET * value)]
            for form, other in needed:
                if other in there:
                    return form.format(text, there[other])
    return None


@lru_cache(maxsize=4096)
def _values(numbers: Numbers) -> dict[Fraction, str]:
    """Every value that an expression of all the numbers can have, with one such expression, in parentheses."""
    if len(numbers) == 1:
        return {Fraction(numbers[0]): str(numbers[0])}
    found: dict[Fraction, str] = {}
    for left, right in _halves(numbers):
        for a, x in _values(left).items():
            for b, y in _values(right).items():
                found.setdefault(a + b, f"({x} + {y})")
                found.setdefault(a - b, f"({x} - {y})")
                found.setdefault(b - a, f"({y} - {x})")
                found.setdefault(a * b, f"({x} * {y})")
                if b:
                    found.setdefault(a / b, f"({x} / {y})")
                if a:
                    found.setdefault(b / a, f"({y} / {x})")
    return found


def _halves(numbers: Numbers) -> Iterator[tuple[Numbers, Numbers]]:
    """The ways to part numbers in two: the first one is always on the left."""
    rest = range(1, len(numbers))
    for size in range(len(numbers) - 1):
        for chosen in combinations(rest, size):
            left = (0, *chosen)
            yield tuple(numbers[i] for i in left), tuple(numbers[i] for i in rest if i not in chosen)
