"""Task `arithmetic`: chains of operations modulo 10, with wrong facts in the demonstrations.

    prompt    1B+0C+5D*3E-9F+2G+1H
    response  B+0=1,C+5=6;D*3=8.E-9=9,F+2=1;G+1=2,#2

The first digit is the start value; the operations apply to it from left to right. Each step of the response copies
the label and the operation and states the new value; the answer follows `#`. The prompt ends with the label after the
last operation, so that a label follows every operand. Multipliers are 3, 7 and 9 only: they are invertible modulo 10,
so all answers are equally frequent and a guess is right one time in ten.

The task leaves room for reinforcement learning. Of the 230 facts (value, operation, operand), a share `wrong_share` has
one fixed wrong result each. Demonstrations state the wrong result with probability `wrong_rate` and continue with it,
so that a model trained on them is right about half the time, and single tokens decide which. The separator after a step
is drawn from `;.,` at random: entropy without effect on the answer, as in real text.

Question i of a split depends on (seed, split, i) only. The content of a question decides its split whatever the seed
(`stages.tasks.generated.split_of_content`): content that belongs to another split is drawn again.
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
from stages.tasks import Question, Split, read_options
from stages.tasks.generated import GeneratedQuestions, reject_data, split_of_content
from stages.tasks.templates import TEMPLATES
from stages.tasks.verdicts import Place, Verdict, judge, no_answer

_OPERANDS = {"+": tuple(range(10)), "-": tuple(range(10)), "*": (3, 7, 9)}
_FACTS = tuple((value, sign, b) for value in range(10) for sign, operands in _OPERANDS.items() for b in operands)
_SEPARATORS = ";.,"
_HELD_OUT_QUESTIONS = 10_000
"""Questions of the validation split, and of the test split."""

Operation = tuple[str, int]
"""Sign and operand."""


@dataclass(frozen=True)
class ArithmeticOptions:
    """The options of `--task-arg`. The field names are part of the task's digest."""

    operations: int = option("Operations in a question.", default=6, minimum=1, maximum=24)
    wrong_share: float = option("Share of the facts with a wrong result.", default=0.2, minimum=0, maximum=1)
    wrong_rate: float = option(
        "Probability that a demonstration states the wrong result of such a fact.", default=0.55, minimum=0, maximum=1
    )
    seed: int = option("Seed of the questions and of the choice of wrong facts.", default=0)
    train_questions: int = option("Number of questions in the train split.", default=1_000_000_000, minimum=1)

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class Arithmetic:
    """The task with its options."""

    options: ArithmeticOptions
    name: str = "arithmetic"
    template: str = TEMPLATES["plain"]
    chat_message: str = TEMPLATES["plain"]

    @cached_property
    def digest(self) -> str:
        return digest(json.dumps([self.name, asdict(self.options)]).encode())

    def questions(self, split: Split) -> Sequence[Question]:
        length = self.options.train_questions if split == "train" else _HELD_OUT_QUESTIONS
        return GeneratedQuestions(length, lambda index: self.question(split, index))

    def verify(self, response: str, reference: str) -> Verdict:
        """Grade a response; its answer is the single digit after the last `#`, at the very end."""
        _, mark, answer = response.rpartition("#")
        if not mark or len(answer) != 1 or answer not in "0123456789":
            return no_answer()
        return judge(answer, answer == reference, Place.MARK, answer)

    def question(self, split: Split, index: int) -> Question:
        """Return question `index` of a split, drawn again until its content belongs to the split."""
        attempt = 0
        while True:
            random = Random(random_key("arithmetic", self.options.seed, split, index, attempt))
            start, operations = _draw_chain(random, self.options.operations)
            prompt = _prompt(start, operations)
            if split_of_content(prompt) == split:
                break
            attempt += 1
        reference = start
        for sign, b in operations:
            reference = _apply(reference, sign, b)
        return Question(
            id=f"arithmetic-{split}-{index}",
            prompt=prompt,
            reference=str(reference),
            solution=self._demonstrate(random, start, operations),
        )

    @cached_property
    def _wrong_results(self) -> dict[tuple[int, str, int], int]:
        """Fact → its wrong result, for the facts that have one."""
        random = Random(random_key("arithmetic", "misconceptions", self.options.seed))
        order = sorted(_FACTS, key=lambda fact: random.random())
        wrong = order[: round(self.options.wrong_share * len(_FACTS))]
        # The right result plus 1 to 9 modulo 10 is any other digit.
        return {fact: (_apply(*fact) + 1 + int(9 * random.random())) % 10 for fact in wrong}

    def _demonstrate(self, random: Random, value: int, operations: Sequence[Operation]) -> str:
        """Return a worked response from a start value, with some of its facts wrong."""
        steps = []
        for i, (sign, b) in enumerate(operations):
            wrong = self._wrong_results.get((value, sign, b))
            # Drawn for every fact, so that `wrong_share` changes no other draw.
            states_wrong = random.random() < self.options.wrong_rate
            value = wrong if wrong is not None and states_wrong else _apply(value, sign, b)
            steps.append(f"{_label(i)}{sign}{b}={value}{_SEPARATORS[int(3 * random.random())]}")
        return "".join(steps) + f"#{value}"


def make_task(name: str, data: str | None, options: Mapping[str, str]) -> Arithmetic:
    """Return the task; it takes no data.

    Raises:
      UserError: there is data, or an unknown or invalid option.
    """
    reject_data(name, data)
    return Arithmetic(read_options(ArithmeticOptions, name, options))


def _draw_chain(random: Random, length: int) -> tuple[int, list[Operation]]:
    """Return a random start value and operations.

    Uses no method of `Random` but `random`, the only one that Python guarantees to return the same numbers in every
    version.
    """
    start = int(10 * random.random())
    operations = []
    for _ in range(length):
        sign = "+-*"[int(3 * random.random())]
        operands = _OPERANDS[sign]
        operations.append((sign, operands[int(len(operands) * random.random())]))
    return start, operations


def _prompt(start: int, operations: Sequence[Operation]) -> str:
    chain = "".join(f"{_label(i)}{sign}{b}" for i, (sign, b) in enumerate(operations))
    return f"{start}{chain}{_label(len(operations))}"


def _label(i: int) -> str:
    return chr(ord("B") + i)


def _apply(value: int, sign: str, b: int) -> int:
    """Return the result of one operation modulo 10."""
    return {"+": value + b, "-": value - b, "*": value * b}[sign] % 10
