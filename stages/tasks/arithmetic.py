"""Task `arithmetic`: chains of operations modulo 10, with a misconception in the demonstrations.

    prompt    1B+0C+5D*3E-9F+2G+1H
    response  B+0=1,C+5=6;D*3=8.E-9=9,F+2=1;G+1=2,#2

The value starts at 1 and goes through the operations from left to right. Each step of the response names its operation
by the letter, copies it and states the new value; the answer follows `#`. The prompt ends with the label after the last
operation, so that every operand has a label behind it. Multipliers are 3, 7 and 9 only: they are invertible, so all
answers are equally frequent and a guess is right one time in ten.

It is made to leave reinforcement learning something to do. Of the 230 facts (value, operation, operand), `wrong_share`
have one fixed wrong result, which the demonstrations state `wrong_rate` of the time and then carry on with; a model
that learns from them is right about as often as not, and single tokens decide it. The separator after a step is drawn
from `;.,`: entropy that does not matter, as in real text.

Question i of a split is a function of (seed, split, i) alone. The content of a question decides its split, whatever the
seed: a draw whose content belongs elsewhere is drawn again. So no question of one split is ever in another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from random import Random

from stages.core.config import option, validate
from stages.core.storage import digest
from stages.maths.randomness import random_key
from stages.tasks import Question, Split, Verdict, read_options
from stages.tasks.generated import GeneratedQuestions, reject_data, split_of_content
from stages.tasks.templates import TEMPLATES

_OPERANDS = {"+": tuple(range(10)), "-": tuple(range(10)), "*": (3, 7, 9)}
_FACTS = tuple((value, sign, b) for value in range(10) for sign, operands in _OPERANDS.items() for b in operands)
_SEPARATORS = ";.,"
_HELD_OUT = 10_000  # questions of the validation split, and of the test split

Step = tuple[str, int]
"""An operation: its sign and its operand."""


@dataclass(frozen=True)
class Options:
    """What `--task-arg` can change."""

    operations: int = option("Operations in a question.", default=6, minimum=1, maximum=24)
    wrong_share: float = option("Share of the facts that have a wrong result.", default=0.2, minimum=0, maximum=1)
    wrong_rate: float = option("How often a demonstration states it.", default=0.55, minimum=0, maximum=1)
    seed: int = option("Which questions, and which facts are wrong.", default=0)
    train_questions: int = option("Questions of the train split.", default=1_000_000_000, minimum=1)

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class Arithmetic:
    """The task under given options."""

    options: Options
    name: str = "arithmetic"
    template: str = TEMPLATES["plain"]
    chat_message: str = TEMPLATES["plain"]

    @cached_property
    def digest(self) -> str:
        return digest(json.dumps([self.name, asdict(self.options)]).encode())

    def questions(self, split: Split) -> Sequence[Question]:
        length = self.options.train_questions if split == "train" else _HELD_OUT
        return GeneratedQuestions(length, lambda index: self.question(split, index))

    def verify(self, response: str, reference: str) -> Verdict:
        """The answer is the single digit after the last `#`, with nothing behind it."""
        _, mark, answer = response.rpartition("#")
        if not mark or len(answer) != 1 or answer not in "0123456789":
            return Verdict(None, 0.0)
        return Verdict(answer, float(answer == reference))

    def question(self, split: Split, index: int) -> Question:
        """Question `index` of a split; draws until the content belongs to the split."""
        attempt = 0
        while True:
            random = Random(random_key("arithmetic", self.options.seed, split, index, attempt))
            start, steps = _draw(random, self.options.operations)
            prompt = _prompt(start, steps)
            if split_of_content(prompt) == split:
                break
            attempt += 1
        reference = start
        for sign, b in steps:
            reference = _apply(reference, sign, b)
        return Question(
            id=f"arithmetic-{split}-{index}",
            prompt=prompt,
            reference=str(reference),
            solution=self._demonstrate(random, start, steps),
        )

    @cached_property
    def _misconceptions(self) -> dict[tuple[int, str, int], int]:
        """The facts that have a wrong result, and that result."""
        random = Random(random_key("arithmetic", "misconceptions", self.options.seed))
        order = sorted(_FACTS, key=lambda fact: random.random())
        wrong = order[: round(self.options.wrong_share * len(_FACTS))]
        return {fact: (_apply(*fact) + 1 + int(9 * random.random())) % 10 for fact in wrong}

    def _demonstrate(self, random: Random, value: int, steps: Sequence[Step]) -> str:
        words = []
        for i, (sign, b) in enumerate(steps):
            wrong = self._misconceptions.get((value, sign, b))
            lapse = random.random() < self.options.wrong_rate
            value = wrong if wrong is not None and lapse else _apply(value, sign, b)
            words.append(f"{_label(i)}{sign}{b}={value}{_SEPARATORS[int(3 * random.random())]}")
        return "".join(words) + f"#{value}"


def make_task(name: str, data: str | None, options: Mapping[str, str]) -> Arithmetic:
    """The task; it takes no data.

    Raises:
      UserError: data was given, or an option that does not exist.
    """
    reject_data(name, data)
    return Arithmetic(read_options(Options, name, options))


def _draw(random: Random, operations: int) -> tuple[int, list[Step]]:
    """A start value and its steps. Only `Random.random` is used: its numbers are the same in every Python."""
    start = int(10 * random.random())
    steps = []
    for _ in range(operations):
        sign = "+-*"[int(3 * random.random())]
        operands = _OPERANDS[sign]
        steps.append((sign, operands[int(len(operands) * random.random())]))
    return start, steps


def _prompt(start: int, steps: Sequence[Step]) -> str:
    chain = "".join(f"{_label(i)}{sign}{b}" for i, (sign, b) in enumerate(steps))
    return f"{start}{chain}{_label(len(steps))}"


def _label(i: int) -> str:
    return chr(ord("B") + i)


def _apply(value: int, sign: str, b: int) -> int:
    """One operation modulo 10."""
    return {"+": value + b, "-": value - b, "*": value * b}[sign] % 10
