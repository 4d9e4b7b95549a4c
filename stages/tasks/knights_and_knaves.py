"""Task `knights-and-knaves`: who tells the truth? Puzzles with one solution, made here, judged by logic.

    prompt    … Ava says: "Ben is a knave, or I am a knight." Ben says: "If Ava is a knight, then Cleo is a knave." …
    response  … \\boxed{Ava is a knight, Ben is a knave, Cleo is a knave}

Everybody is a knight, whose statement is true, or a knave, whose statement is false. Statements are made of who is
what, joined by and, or, if … then, if and only if, not. A statement is kept as its truth table over all 2ⁿ ways to
assign the n people, one bit each; a puzzle is used if the tables leave one way.

Question i of a split is a function of (people, depth, seed, split, i) alone, and its content decides its split,
whatever the seed: a draw whose content belongs elsewhere is drawn again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from random import Random

from stages.core.config import option, validate
from stages.core.storage import digest
from stages.maths.randomness import random_key
from stages.tasks import Question, Split, Verdict, read_options
from stages.tasks.boxes import after_thinking, last_box
from stages.tasks.generated import GeneratedQuestions, reject_data, split_of_content
from stages.tasks.templates import TEMPLATES

_NAMES = ("Ava", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana", "Ivo", "June", "Kai", "Lena")
_SIZES: dict[Split, int] = {"train": 1_000_000_000, "validation": 10_000, "test": 10_000}
_LONGEST_ANSWER = 2_000
_RULES = (
    "On an island everybody is either a knight, who always tells the truth, or a knave, who always lies. "
    "You meet {people}. {statements} Who is what? "
    "Put the answer within \\boxed{{}}, in the form: {form}."
)
_CLAIM = re.compile(r"\b([A-Z][a-z]{1,11})\b(?:\}|\s)*+(?:is|=|:)\s*+(?:an?\s++)?+(knight|knave)\b(?!/)")


@dataclass(frozen=True)
class Options:
    """What `--task-arg` can change."""

    people: int = option("People in a puzzle.", default=3, minimum=2, maximum=8)
    depth: int = option("How deep statements are nested; 1 joins two claims.", default=1, minimum=1, maximum=3)
    seed: int = option("Which puzzles.", default=0)

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class Statement:
    """A sentence and where it is true: bit w of `table` tells it of world w, in which person p is a knight if bit p of
    w is set."""

    text: str
    table: int


@dataclass(frozen=True)
class KnightsAndKnaves:
    """The task under given options."""

    options: Options
    name: str = "knights-and-knaves"
    template: str = TEMPLATES["plain"]
    chat_message: str = TEMPLATES["plain"]

    @cached_property
    def digest(self) -> str:
        return digest(json.dumps([self.name, asdict(self.options)]).encode())

    def questions(self, split: Split) -> Sequence[Question]:
        return GeneratedQuestions(_SIZES[split], lambda index: self.question(split, index))

    def question(self, split: Split, index: int) -> Question:
        """Question `index` of a split; draws until a puzzle has one solution and belongs to the split."""
        attempt = 0
        while True:
            random = Random(random_key(self.name, *asdict(self.options).values(), split, index, attempt))
            names = _draw_names(random, self.options.people)
            statements = [_draw(random, names, speaker, self.options.depth) for speaker in range(len(names))]
            worlds = possible_worlds(statements, len(names))
            prompt = _prompt(names, statements)
            if worlds.bit_count() == 1 and split_of_content(prompt) == split:
                break
            attempt += 1
        world = worlds.bit_length() - 1
        roles = {name: "knight" if world >> person & 1 else "knave" for person, name in enumerate(names)}
        return Question(
            id=f"{self.name}-{split}-{index}",
            prompt=prompt,
            reference=_write(roles),
            solution=_explain(names, statements, world, roles),
            metadata={"level": f"{self.options.people} people"},
        )

    def verify(self, response: str, reference: str) -> Verdict:
        """Right if the claims in the last box (without one, in what follows the last `Answer:`) are the solution.

        Each person must be called one thing; since a puzzle has one solution, the claims satisfy the statements if and
        only if they are that.
        """
        box = last_box(response)
        _, mark, tail = after_thinking(response).rpartition("Answer:")
        stated = box if box is not None else tail if mark else ""
        expected = _read(reference)
        claims = _read(stated[:_LONGEST_ANSWER])
        if claims is None or expected is None or claims.keys() != expected.keys():
            return Verdict(None, 0.0)
        return Verdict(_write({name: claims[name] for name in expected}), float(claims == expected))


def make_task(name: str, data: str | None, options: Mapping[str, str]) -> KnightsAndKnaves:
    """The task; it takes no data.

    Raises:
      UserError: data was given, or an option that does not exist.
    """
    reject_data(name, data)
    return KnightsAndKnaves(read_options(Options, name, options))


def possible_worlds(statements: Sequence[Statement], people: int) -> int:
    """The worlds, one bit each, in which a person is a knight exactly where the person's statement is true."""
    worlds = _everywhere(people)
    for person, statement in enumerate(statements):
        worlds &= ~(_knight(person, people) ^ statement.table)
    return worlds


def _everywhere(people: int) -> int:
    return (1 << (1 << people)) - 1


@lru_cache(maxsize=64)
def _knight(person: int, people: int) -> int:
    """The worlds in which a person is a knight."""
    return sum(1 << world for world in range(1 << people) if world >> person & 1)


def _draw_names(random: Random, people: int) -> list[str]:
    order = sorted(_NAMES, key=lambda name: random.random())
    return sorted(order[:people])


def _draw(random: Random, names: Sequence[str], speaker: int, depth: int) -> Statement:
    """A statement of the speaker. Only `Random.random` is used: its numbers are the same in every Python."""
    everywhere = _everywhere(len(names))
    if depth == 0:
        person, lies = int(len(names) * random.random()), random.random() < 0.5
        subject = "I am" if person == speaker else f"{names[person]} is"
        table = _knight(person, len(names))
        return Statement(f"{subject} a {'knave' if lies else 'knight'}", table ^ everywhere if lies else table)
    while True:
        first, second = (_draw(random, names, speaker, depth - 1) for _ in range(2))
        a, b = (f"({one.text})" if depth > 1 else one.text for one in (first, second))
        joined = [
            Statement(f"{a}, and {b}", first.table & second.table),
            Statement(f"{a}, or {b}", first.table | second.table),
            Statement(f"if {a}, then {b}", first.table ^ everywhere | second.table),
            Statement(f"{a} if and only if {b}", first.table ^ second.table ^ everywhere),
            Statement(f"it is not true that {a}", first.table ^ everywhere),
        ][int(5 * random.random())]
        if joined.table not in (0, everywhere, first.table, second.table):  # it says more than nothing or a part of it
            return joined


def _prompt(names: Sequence[str], statements: Sequence[Statement]) -> str:
    said = [f'{name} says: "{one.text[0].upper()}{one.text[1:]}."' for name, one in zip(names, statements, strict=True)]
    return _RULES.format(
        people=", ".join(names[:-1]) + f" and {names[-1]}",
        statements=" ".join(said),
        form=", ".join(f"{name} is a knight/knave" for name in names),
    )


def _write(roles: Mapping[str, str]) -> str:
    return ", ".join(f"{name} is a {role}" for name, role in roles.items())


def _read(text: str) -> dict[str, str] | None:
    """Who is called what; None where nobody is, or somebody is called both."""
    claims: dict[str, str] = {}
    for name, role in _CLAIM.findall(text):
        if claims.setdefault(name, role) != role:
            return None
    return claims or None


def _explain(names: Sequence[str], statements: Sequence[Statement], world: int, roles: Mapping[str, str]) -> str:
    """A solution that checks the assignment statement by statement."""
    checks = [
        f"What {name} says is {'true' if statement.table >> world & 1 else 'false'}, and {name} is a {roles[name]}."
        for name, statement in zip(names, statements, strict=True)
    ]
    return f" Suppose {_write(roles)}. {' '.join(checks)} So \\boxed{{{_write(roles)}}}."
