"""A task is questions, their prompts, and a verifier. This file owns what the stages see of one; each task is a module.

A task module has `open(name, data, options) -> Task`: `name` is the task's, of which a module may have several, `data`
the file, directory or hub name given with `--data`, `options` the pairs given with `--task-arg`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, Protocol, TypeVar

from stages.core.config import field_types
from stages.core.errors import UserError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

STREAM = 10_000_000
"""A split of more questions than this is made as it is read: too many to take all, or to shuffle."""

T = TypeVar("T")

TASKS = {
    "arithmetic": "stages.tasks.arithmetic",
    "gsm8k": "stages.tasks.datasets",
    "math": "stages.tasks.datasets",
    "math12k": "stages.tasks.datasets",
    "math500": "stages.tasks.datasets",
    "aime24": "stages.tasks.datasets",
    "amc23": "stages.tasks.datasets",
    "olympiadbench": "stages.tasks.datasets",
    "minerva_math": "stages.tasks.datasets",
    "college_math": "stages.tasks.datasets",
    "custom": "stages.tasks.datasets",
    "game24": "stages.tasks.game24",
    "knights-and-knaves": "stages.tasks.knights_and_knaves",
}


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
      id: names it for ever, e.g. `gsm8k-train-17`; unique within a task and its data.
      prompt: what is asked; what the model reads, once `stages.responses.prompts` has put it into a template.
      reference: the answer that the verifier compares with.
      solution: a worked response to learn from, without the end token; None if there is none.
      metadata: what results are broken down by, e.g. `{"subject": "Algebra", "level": "3"}`.
      history: (role, content) of the messages before the prompt, where the question is a conversation.
    """

    id: str
    prompt: str
    reference: str
    solution: str | None
    metadata: Mapping[str, str] = field(default_factory=dict)
    history: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What the verifier says: the answer it read (canonical, so that equal answers are equal strings; None: it found
    none), and the reward: 1 right, 0 wrong, None ungradable (it could not be judged within the limits)."""

    answer: str | None
    reward: float | None


class Task(Protocol):
    """What the stages ask of a task."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str:
        """Hex digest of all that the questions and verdicts depend on: options and data."""
        ...

    @property
    def template(self) -> str:
        """The prompt where no template is asked for (`stages.tasks.templates`)."""
        ...

    @property
    def chat_message(self) -> str:
        """The same, as a user's message in a chat template."""
        ...

    def questions(self, split: Split) -> Sequence[Question]:
        """The questions of a split, in an order that never changes; a slice costs no more than its own questions.

        Raises:
          UserError: the data has no such split, or the split has no questions.
        """
        ...

    def verify(self, response: str, reference: str) -> Verdict:
        """Grade a response (without its prompt). Any text is an answer to reckon with: never raises, never hangs."""
        ...


def open_task(name: str, data: str | None = None, args: Sequence[str] = ()) -> Task:
    """The task of a name.

    Args:
      data: file, directory or Hugging Face data set, for the tasks that take one.
      args: options of the task, each `key=value`.

    Raises:
      UserError: unknown task or option, an option twice or without a value, data that cannot be read.
    """
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}; expected one of {', '.join(TASKS)}")
    options: dict[str, str] = {}
    for arg in args:
        key, equals, value = arg.partition("=")
        if not equals or key in options:
            raise UserError(f"--task-arg takes key=value, each key once; got {arg!r}")
        options[key] = value
    return import_module(TASKS[name]).open(name, data, options)


def read_options(cls: type[T], task: str, options: Mapping[str, str]) -> T:
    """A task's options as an instance of its dataclass, whose fields are int, float or str.

    Raises:
      UserError: a key that is none of its fields, or a value of the wrong kind.
    """
    types = field_types(cls)
    values: dict[str, Any] = {}
    for key, text in options.items():
        if key not in types:
            known = ", ".join(f"{one.name}={one.default}".rstrip("=") for one in dataclasses.fields(cls))  # type: ignore[arg-type]
            raise UserError(f"task {task} has no option {key!r}; its options and their defaults: {known}")
        try:
            values[key] = types[key](text)
        except ValueError as error:
            raise UserError(f"--task-arg {key} must be of type {types[key].__name__}; got {text!r}") from error
    try:
        return cls(**values)
    except UserError as error:  # a bound, which names the field as if it were a flag
        name, problem = str(error).removeprefix("--").split(" ", 1)
        raise UserError(f"--task-arg {name.replace('-', '_')} {problem}") from error
