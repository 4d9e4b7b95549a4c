"""The interface of a task, and the registry of tasks.

A task consists of questions, a default prompt template and a verifier. To add one, write a module with

    make_task(name: str, data: str | None, options: Mapping[str, str]) -> Task

and enter it in `TASKS`. `name` is the registered name (one module may serve several), `data` the file, directory or hub
name given with `--data`, and `options` the pairs given with `--task-arg`.

The command line imports this file for the names of the tasks, so it imports nothing heavy; `open_task` imports the
module of the task that it opens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, Protocol, TypeVar

from stages.core.config import field_types
from stages.core.errors import UserError, did_you_mean, one_of
from stages.tasks.verdicts import Verdict

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

MAX_FINITE_SPLIT = 10_000_000
"""A split with more questions is an endless stream: its questions are made on access, in an order that is random
already. No stage takes all of them or shuffles them."""

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
"""Task name → its module, as a string: importing this file must not import pyarrow."""

OptionsT = TypeVar("OptionsT")


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
      id: permanent identifier, e.g. `gsm8k-train-17`; unique within a task and its data.
      prompt: the text of the question. `stages.responses.prompts` inserts it into a prompt template.
      reference: the gold answer that the verifier compares an answer with.
      solution: a worked response to learn from, without the end token; None if there is none.
      metadata: labels by which results are broken down, e.g. `{"subject": "Algebra", "level": "3"}`.
      history: (role, content) of the messages before the prompt, if the question is a conversation.
    """

    id: str
    prompt: str
    reference: str
    solution: str | None
    metadata: Mapping[str, str] = field(default_factory=dict)
    history: tuple[tuple[str, str], ...] = ()


class Task(Protocol):
    """What the stages use of a task."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str:
        """Hex digest of everything that questions and verdicts depend on: options and data."""
        ...

    @property
    def template(self) -> str:
        """Default prompt template, as a text (see `stages.tasks.templates`)."""
        ...

    @property
    def chat_message(self) -> str:
        """Default template of the user's message if the model's chat template wraps it."""
        ...

    def questions(self, split: Split) -> Sequence[Question]:
        """Return the questions of a split in a fixed order; a slice costs no more than the questions in it.

        Raises:
          UserError: the data has no such split, or the split has no questions.
        """
        ...

    def verify(self, response: str, reference: str) -> Verdict:
        """Grade a response (without its prompt). Accepts any text; never raises and never hangs."""
        ...


def open_task(name: str, data: str | None = None, args: Sequence[str] = ()) -> Task:
    """Return the task with a name.

    Args:
      name: a key of `TASKS`.
      data: file, directory or Hugging Face data set, for the tasks that take one.
      args: options of the task, each `key=value`.

    Raises:
      UserError: an unknown task or option, an option given twice or without a value, or unreadable data.
    """
    if name not in TASKS:
        raise UserError(f"--task must be {one_of(TASKS, name)}")
    options: dict[str, str] = {}
    for arg in args:
        key, equals, value = arg.partition("=")
        if not equals or key in options:
            raise UserError(f"--task-arg takes key=value, each key once; got {arg!r}")
        options[key] = value
    return import_module(TASKS[name]).make_task(name, data, options)


def read_options(cls: type[OptionsT], task: str, options: Mapping[str, str]) -> OptionsT:
    """Return a task's options as an instance of its dataclass, whose fields are int, float or str.

    Raises:
      UserError: a key that is not a field of the dataclass, or a value of the wrong type or out of bounds.
    """
    types = field_types(cls)
    values: dict[str, Any] = {}
    for key, text in options.items():
        if key not in types:
            known = ", ".join(f"{one.name}={one.default}".rstrip("=") for one in dataclasses.fields(cls))  # type: ignore[arg-type]
            guess = did_you_mean(key, types)
            raise UserError(f"task {task} has no option {key!r}; its options and their defaults: {known}.{guess}")
        try:
            values[key] = types[key](text)
        except ValueError as error:
            raise UserError(f"--task-arg {key} must be of type {types[key].__name__}; got {text!r}") from error
    try:
        return cls(**values)
    except UserError as error:
        # `validate` names a field as if it were a flag (`--train-questions must …`); here it is a key of --task-arg.
        name, problem = str(error).removeprefix("--").split(" ", 1)
        raise UserError(f"--task-arg {name.replace('-', '_')} {problem}") from error
