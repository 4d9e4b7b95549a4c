"""Task `game24`: make 24 from four numbers, each used once, with + - * / and parentheses.

    prompt    Use each of the numbers 4, 5, 6 and 10 exactly once, with +, -, *, / and parentheses, to make 24. …
    response  (10 - 4) * 5 - 6 = 24, so \\boxed{(10 - 4) * 5 - 6}.

Without data, the questions are all 1,362 solvable hands of four numbers from 1 to 13; a digest of the numbers decides
the split. With data, they are the rows in order, from a column `Puzzles` (`4 5 6 10`) or `numbers`. The expression in
the last box is verified by `stages.tasks.countdown`.
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
from stages.tasks import Question, Split
from stages.tasks.countdown import verify_countdown
from stages.tasks.data import DataSplits, open_data
from stages.tasks.generated import GeneratedQuestions, split_of_content
from stages.tasks.templates import TEMPLATES
from stages.tasks.verdicts import Verdict

TARGET = 24
_LARGEST_NUMBER = 13
"""As on playing cards, with which the game is played."""
_COLUMNS = ("Puzzles", "puzzle", "numbers", "nums")

Numbers = tuple[int, ...]


@dataclass(frozen=True)
class Game24:
    """The task over the puzzles of a data set, or without data over all solvable puzzles."""

    data: DataSplits | None = field(repr=False)
    name: str = "game24"
    template: str = TEMPLATES["plain"]
    chat_message: str = TEMPLATES["plain"]

    @cached_property
    def digest(self) -> str:
        return storage.digest(f"{self.name} {self.data.digest if self.data else _LARGEST_NUMBER}".encode())

    def questions(self, split: Split) -> Sequence[Question]:
        if self.data is None:
            return _questions([numbers for numbers in _solvable_hands() if split_of_content(_name(numbers)) == split])
        located = [
            (location, _read_numbers(value, location))
            for location, row in self.data.rows(split, _choose_column)
            for value in row.values()
        ]
        locations: dict[Numbers, str] = {}  # sorted numbers → location of their first row
        for location, numbers in located:
            other = locations.setdefault(tuple(sorted(numbers)), location)
            if other != location:
                raise UserError(f"{location} repeats the numbers of {other}: {_name(numbers)}; give each puzzle once")
        if not located:
            raise UserError(f"task has no questions: the {split} split of {self.data.source} is empty")
        return _questions([numbers for _, numbers in located])

    def verify(self, response: str, reference: str) -> Verdict:
        return verify_countdown(response, [int(number) for number in reference.split()], TARGET)


def make_task(name: str, data: str | None, options: Mapping[str, str]) -> Game24:
    """Return the task over a file or directory, or over all solvable puzzles.

    Raises:
      UserError: there is an option (the task has none), or the data cannot be read.
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


def _choose_column(available: Sequence[str], location: str) -> list[str]:
    for name in _COLUMNS:
        if name in available:
            return [name]
    raise UserError(f"{location} has no column {' or '.join(_COLUMNS)}; found {', '.join(available)}")


def _read_numbers(value: object, location: str) -> Numbers:
    words = list(value) if isinstance(value, list) else re.split(r"[,\s]+", str(value).strip(" []"))
    if not 2 <= len(words) <= 4 or not all(re.fullmatch(r"[0-9]{1,9}", str(word)) for word in words):
        raise UserError(f"{location}: a puzzle must be two to four integers, separated by spaces; got {value!r}")
    return tuple(int(word) for word in words)


@lru_cache(maxsize=1)
def _solvable_hands() -> list[Numbers]:
    hands = combinations_with_replacement(range(1, _LARGEST_NUMBER + 1), 4)
    return [numbers for numbers in hands if _solve(numbers)]


@lru_cache(maxsize=4096)
def _solve(numbers: Numbers) -> str | None:
    """Return an expression of the numbers that equals the target; None if there is none.

    The last operation joins two sub-expressions. For every value of the left one, look up whether the right one can
    have the value that the operation needs.
    """
    for left, right in _splits(numbers):
        right_values = _values(right)
        for value, text in _values(left).items():
            # (form of the expression, the value that the right one needs)
            needed = [("{} + {}", TARGET - value), ("{} - {}", value - TARGET), ("{1} - {0}", TARGET + value)]
            if value:
                needed += [("{} * {}", TARGET / value), ("{} / {}", value / TARGET), ("{1} / {0}", TARGET * value)]
            for form, other in needed:
                if other in right_values:
                    return form.format(text, right_values[other])
    return None


@lru_cache(maxsize=4096)
def _values(numbers: Numbers) -> dict[Fraction, str]:
    """Return every value that an expression of all the numbers can have → one such expression, in parentheses."""
    if len(numbers) == 1:
        return {Fraction(numbers[0]): str(numbers[0])}
    found: dict[Fraction, str] = {}
    for left, right in _splits(numbers):
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


def _splits(numbers: Numbers) -> Iterator[tuple[Numbers, Numbers]]:
    """Yield every split of the numbers into two non-empty groups once: the first number is always on the left."""
    rest = range(1, len(numbers))
    for size in range(len(numbers) - 1):
        for chosen in combinations(rest, size):
            left = (0, *chosen)
            yield tuple(numbers[i] for i in left), tuple(numbers[i] for i in rest if i not in chosen)
