"""Task `knights-and-knaves`: generated logic puzzles with exactly one solution.

    prompt    … Ava says: "Ben is a knave, or I am a knight." Ben says: "If Ava is a knight, then Cleo is a knave." …
    response  … \\boxed{Ava is a knight, Ben is a knave, Cleo is a knave}

Each person is a knight, whose statement is true, or a knave, whose statement is false. Statements combine claims about
who is what with and, or, if … then, if and only if, not.

A *world* assigns a role to each of the n people. It is a number of n bits: bit p is set if person p is a knight. A set
of worlds is an integer of 2ⁿ bits, one per world; the worlds in which a statement is true are its truth table. Set
operations are bitwise operations. A puzzle is used if its statements are consistent with exactly one world.

Question i of a split depends on (people, depth, seed, split, i) only. The content of a question decides its split
whatever the seed (`stages.tasks.generated.split_of_content`): content that belongs to another split is drawn again.
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
from stages.tasks import Question, Split, read_options
from stages.tasks.boxes import after_thinking, last_box
from stages.tasks.generated import GeneratedQuestions, reject_data, split_of_content
from stages.tasks.templates import TEMPLATES
from stages.tasks.verdicts import Place, Reason, Step, Verdict, judge, no_answer

_NAMES = ("Ava", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana", "Ivo", "June", "Kai", "Lena")
_SIZES: dict[Split, int] = {"train": 1_000_000_000, "validation": 10_000, "test": 10_000}
_MAX_ANSWER_CHARACTERS = 2_000
_RULES = (
    "On an island everybody is either a knight, who always tells the truth, or a knave, who always lies. "
    "You meet {people}. {statements} Who is what? "
    "Put the answer within \\boxed{{}}, in the form: {form}."
)
"""The prompt. Its wording is part of the questions: a change of it changes them, and their splits."""
# "Ava is a knight", "Ava: knight", "Ava = knight"; not the placeholder "Ava is a knight/knave" of the prompt.
_CLAIM = re.compile(r"\b([A-Z][a-z]{1,11})\b(?:\}|\s)*+(?:is|=|:)\s*+(?:an?\s++)?+(knight|knave)\b(?!/)")


@dataclass(frozen=True)
class KnightsAndKnavesOptions:
    """The options of `--task-arg`. The field names are part of the task's digest, and their order of the questions."""

    people: int = option("Number of people in a puzzle.", default=3, minimum=2, maximum=8)
    depth: int = option("Nesting depth of a statement; 1 joins two claims.", default=1, minimum=1, maximum=3)
    seed: int = option("Seed of the puzzles.", default=0)

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class Statement:
    """A statement.

    Attributes:
      text: the sentence, without capital and full stop.
      table: the set of worlds in which it is true.
    """

    text: str
    table: int


@dataclass(frozen=True)
class KnightsAndKnaves:
    """The task with its options."""

    options: KnightsAndKnavesOptions
    name: str = "knights-and-knaves"
    template: str = TEMPLATES["plain"]
    chat_message: str = TEMPLATES["plain"]

    @cached_property
    def digest(self) -> str:
        return digest(json.dumps([self.name, asdict(self.options)]).encode())

    def questions(self, split: Split) -> Sequence[Question]:
        return GeneratedQuestions(_SIZES[split], lambda index: self.question(split, index))

    def question(self, split: Split, index: int) -> Question:
        """Return question `index` of a split, drawn again until it has one solution and belongs to the split."""
        attempt = 0
        while True:
            random = Random(random_key(self.name, *asdict(self.options).values(), split, index, attempt))
            names = _draw_names(random, self.options.people)
            statements = [_draw_statement(random, names, speaker, self.options.depth) for speaker in range(len(names))]
            worlds = consistent_worlds(statements, len(names))
            prompt = _prompt(names, statements)
            if worlds.bit_count() == 1 and split_of_content(prompt) == split:
                break
            attempt += 1
        world = worlds.bit_length() - 1  # the only bit that is set
        roles = {name: "knight" if world >> person & 1 else "knave" for person, name in enumerate(names)}
        return Question(
            id=f"{self.name}-{split}-{index}",
            prompt=prompt,
            reference=_format_roles(roles),
            solution=_explain(names, statements, world, roles),
            metadata={"level": f"{self.options.people} people"},
        )

    def verify(self, response: str, reference: str) -> Verdict:
        """Grade a response by the claims in its last box or, without a box, after the last `Answer:`.

        The claims must give each person one role and equal the reference, which is the only solution of the puzzle.
        """
        place, stated = Place.BOX, last_box(response)
        if not stated:
            _, mark, tail = after_thinking(response).rpartition("Answer:")
            if not mark:
                return no_answer()
            place, stated = Place.ANNOUNCED, tail
        stated = stated[:_MAX_ANSWER_CHARACTERS]
        expected, claims = _read_roles(reference), _read_roles(stated)
        if claims is None or expected is None or claims.keys() != expected.keys():
            return Verdict(None, 0.0, Reason.INVALID, place, stated)
        answer = _format_roles({name: claims[name] for name in expected})
        return judge(answer, claims == expected, place, stated, Step("read the claims", answer))


def make_task(name: str, data: str | None, options: Mapping[str, str]) -> KnightsAndKnaves:
    """Return the task; it takes no data.

    Raises:
      UserError: there is data, or an unknown or invalid option.
    """
    reject_data(name, data)
    return KnightsAndKnaves(read_options(KnightsAndKnavesOptions, name, options))


def consistent_worlds(statements: Sequence[Statement], people: int) -> int:
    """Return the set of worlds in which each speaker is a knight if and only if the speaker's statement is true.

    Args:
      statements: the statement of person p at index p.
      people: number of people, n; it may exceed the number of statements.
    """
    worlds = _all_worlds(people)
    for person, statement in enumerate(statements):
        worlds &= ~(_worlds_with_knight(person, people) ^ statement.table)
    return worlds


def _all_worlds(people: int) -> int:
    return (1 << (1 << people)) - 1


@lru_cache(maxsize=64)
def _worlds_with_knight(person: int, people: int) -> int:
    """Return the set of worlds in which a person is a knight."""
    return sum(1 << world for world in range(1 << people) if world >> person & 1)


def _draw_names(random: Random, people: int) -> list[str]:
    order = sorted(_NAMES, key=lambda name: random.random())
    return sorted(order[:people])


def _draw_statement(random: Random, names: Sequence[str], speaker: int, depth: int) -> Statement:
    """Return a random statement of a speaker.

    Uses no method of `Random` but `random`, the only one that Python guarantees to return the same numbers in every
    version.
    """
    all_worlds = _all_worlds(len(names))
    if depth == 0:
        person, is_knave = int(len(names) * random.random()), random.random() < 0.5
        subject = "I am" if person == speaker else f"{names[person]} is"
        table = _worlds_with_knight(person, len(names))
        return Statement(f"{subject} a {'knave' if is_knave else 'knight'}", table ^ all_worlds if is_knave else table)
    while True:
        first, second = (_draw_statement(random, names, speaker, depth - 1) for _ in range(2))
        a, b = (f"({one.text})" if depth > 1 else one.text for one in (first, second))
        joined = [
            Statement(f"{a}, and {b}", first.table & second.table),
            Statement(f"{a}, or {b}", first.table | second.table),
            Statement(f"if {a}, then {b}", first.table ^ all_worlds | second.table),
            Statement(f"{a} if and only if {b}", first.table ^ second.table ^ all_worlds),
            Statement(f"it is not true that {a}", first.table ^ all_worlds),
        ][int(5 * random.random())]
        # Reject tautologies, contradictions, and statements that are equivalent to one of their operands.
        if joined.table not in (0, all_worlds, first.table, second.table):
            return joined


def _prompt(names: Sequence[str], statements: Sequence[Statement]) -> str:
    said = [f'{name} says: "{one.text[0].upper()}{one.text[1:]}."' for name, one in zip(names, statements, strict=True)]
    return _RULES.format(
        people=", ".join(names[:-1]) + f" and {names[-1]}",
        statements=" ".join(said),
        form=", ".join(f"{name} is a knight/knave" for name in names),
    )


def _format_roles(roles: Mapping[str, str]) -> str:
    return ", ".join(f"{name} is a {role}" for name, role in roles.items())


def _read_roles(text: str) -> dict[str, str] | None:
    """Return person → role from the claims of a text; None if there are none, or two contradict each other."""
    claims: dict[str, str] = {}
    for name, role in _CLAIM.findall(text):
        if claims.setdefault(name, role) != role:
            return None
    return claims or None


def _explain(names: Sequence[str], statements: Sequence[Statement], world: int, roles: Mapping[str, str]) -> str:
    """Return a worked solution that checks the roles against each statement."""
    checks = [
        f"What {name} says is {'true' if statement.table >> world & 1 else 'false'}, and {name} is a {roles[name]}."
        for name, statement in zip(names, statements, strict=True)
    ]
    solution = _format_roles(roles)
    return f" Suppose {solution}. {' '.join(checks)} So \\boxed{{{solution}}}."
