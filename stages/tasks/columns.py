"""The mapping of a row of data to a question: which column has which role, and errors that name the row and column."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, time
from decimal import Decimal
from typing import Any

from stages.core.errors import UserError, did_you_mean
from stages.tasks import Question
from stages.tasks.graders import Grader

_PROMPTS = "prompts"
"""The name under which a reward function receives the questions; not a column of the data."""
ROLES: dict[str, tuple[str, ...]] = {
    "question": ("question", "problem", "prompt"),
    "answer": ("answer", "final_answer", "reference", "reward_model.ground_truth", "ground_truth", "target"),
    "solution": ("solution",),
    "id": ("unique_id",),
    "subject": ("subject", "type", "subfield", "data_topic"),
    "level": ("level",),
}
"""Role of a column → the names that public data sets give it. The first name that exists is used. A dotted name is a
field of a struct; `reward_model.ground_truth` is verl's, `target` lm-evaluation-harness's."""

Messages = tuple[tuple[str, str], ...]
"""(role, content) of each message of a chat."""


@dataclass(frozen=True)
class ColumnMapping:
    """Converts rows to questions.

    Attributes:
      grader: splits the content of the answer column into reference and solution.
      user_columns: role → column, for the roles that the user assigns.
      reward_columns: the columns that a reward function takes ("all": every column). Their values form the reference,
        as a JSON object, so that a later stage can call the function without the data. None: the reference is an
        answer.
      skip_unanswered: skip rows whose answer is an empty box; MATH has two.
    """

    grader: Grader
    user_columns: Mapping[str, str] = field(default_factory=dict)
    reward_columns: Sequence[str] | str | None = None
    skip_unanswered: bool = False

    def choose(self, available: Sequence[str], location: str) -> list[str]:
        """Return the columns to read.

        Raises:
          UserError: a column is missing; the message names the missing and the available columns.
        """
        roles = self.roles(available, location)
        missing = [] if "question" in roles else ["question"]
        if self.reward_columns is None and "answer" not in roles and "solution" not in roles:
            missing.append("answer")
        if missing:
            names = " and no ".join(" or ".join(ROLES[role]) for role in missing)
            hints = " and ".join(f"--task-arg {role}=…" for role in missing)
            raise UserError(f"{location} has no column {names}; found {', '.join(available)}. Name yours with {hints}")
        if self.reward_columns == "all":
            extra = [name for name in available if not _is_field(name, available)]
        else:
            extra = [name for name in self.reward_columns or () if name != _PROMPTS]
        if absent := [name for name in extra if name not in available]:
            guess = did_you_mean(absent[0], available)
            raise UserError(
                f"{location} has no column {', '.join(absent)}, which the reward function takes; "
                f"found {', '.join(available)}.{guess}"
            )
        return list(dict.fromkeys([*roles.values(), *extra]))

    def roles(self, available: Sequence[str], location: str) -> dict[str, str]:
        """Return role → column for each role that a column has."""
        if absent := [name for name in self.user_columns.values() if name not in available]:
            guess = did_you_mean(absent[0], available)
            raise UserError(f"{location} has no column {' and no '.join(absent)}; found {', '.join(available)}.{guess}")
        defaults = {role: next((name for name in names if name in available), None) for role, names in ROLES.items()}
        return {role: name for role, name in {**defaults, **self.user_columns}.items() if name}

    def question(self, row: Mapping[str, Any], location: str, task: str, default_id: str) -> Question | None:
        """Return the question of a row; None if the row is skipped.

        Args:
          row: the columns that `choose` names.
          location: where the row is, for error messages.
          task: name of the task; the id of the question starts with it.
          default_id: rest of the id if no column has the role `id`.

        Raises:
          UserError: a column is empty or has the wrong type, or the grader cannot use the answer as a reference.
        """
        roles = self.roles(list(row), location)

        prompt, history = _read_prompt(row[roles["question"]], f"{location}: column {roles['question']}")
        reference, worked = self._read_reference(row, roles, prompt, location)
        if not reference and self.skip_unanswered:
            return None
        solution = _read_role(row, roles, "solution", location) or worked
        identifier = _read_role(row, roles, "id", location)
        labels = {role: _read_role(row, roles, role, location) for role in ("subject", "level")}
        return Question(
            id=f"{task}-{identifier or default_id}",
            prompt=prompt,
            reference=reference,
            solution=f" {solution.strip()}" if solution else None,
            # MATH writes `Level 3` where MATH-500 writes 3.
            metadata={role: label.removeprefix("Level ") for role, label in labels.items() if label},
            history=history,
        )

    def reference(self, row: Mapping[str, Any], location: str) -> str:
        """Return the reference of a row that may lack a question, for responses that exist already.

        Raises:
          UserError: a column is missing, or the grader cannot use the answer as a reference.
        """
        roles = self.roles(list(row), location)
        if self.reward_columns is None and not {"answer", "solution"} & roles.keys():
            raise UserError(
                f"{location} has no column {' or '.join(ROLES['answer'])}; found {', '.join(row)}. Name yours with "
                "--answer-column"
            )
        question = row.get(roles.get("question", ""))
        prompt = _read_prompt(question, f"{location}: column {roles['question']}")[0] if question else ""
        return self._read_reference(row, roles, prompt, location)[0]

    def _read_reference(
        self, row: Mapping[str, Any], roles: Mapping[str, str], prompt: str, location: str
    ) -> tuple[str, str | None]:
        """Return the reference of a row, and the worked solution that its column contains."""
        if self.reward_columns is None:
            role = "answer" if "answer" in roles else "solution"
            reference, worked = self.grader.split_answer(_read_role(row, roles, role, location) or "")
            if reference or not self.skip_unanswered:
                self._check_reference(reference, row[roles[role]], f"{location}: the answer in column {roles[role]}")
            return reference, worked
        every = [*(name for name in row if not _is_field(name, row)), _PROMPTS]
        names = every if self.reward_columns == "all" else self.reward_columns
        if absent := [name for name in names if name != _PROMPTS and name not in row]:
            raise UserError(f"{location} has no column {', '.join(absent)}, which the reward function takes")
        return _to_json({name: prompt if name == _PROMPTS else row[name] for name in names}, location), None

    def _check_reference(self, reference: str, found: Any, location: str) -> None:
        if not self.grader.is_reference(reference):
            # The end of a long text: there a worked solution states its answer.
            shown = found[-60:] if isinstance(found, str) else found
            raise UserError(f"{location} must be {self.grader.expects}; got {shown!r}")


def _read_role(row: Mapping[str, Any], roles: Mapping[str, str], role: str, location: str) -> str | None:
    """Return the text in the column of a role; None if there is no such column, or it is empty."""
    column = roles.get(role)
    if column is None or row[column] is None:
        return None
    value = row[column]
    if role == "answer" and isinstance(value, list) and len(value) > 1:  # OlympiadBench lists several solutions
        raise UserError(
            f"{location}: column {column} must hold one answer, such as '5, 7' for two values; got {value!r:.80}"
        )
    return _read_text(value, f"{location}: column {column}")


def _read_prompt(value: Any, location: str) -> tuple[str, Messages]:
    """Return the text of a question and the messages before it.

    Args:
      value: a text, or the messages of a chat, each `{"role": …, "content": …}`; the last one is the question.
    """
    history: Messages = ()
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        messages = tuple((str(one.get("role")), _read_content(one.get("content"), location)) for one in value)
        role, value = messages[-1]
        if role != "user":
            raise UserError(
                f"{location} must hold messages with role and content, the last one with the role user; "
                f"got the roles {', '.join(role for role, _ in messages)}"
            )
        history = messages[:-1]
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{location} must be a non-empty text; got {value!r}")
    return value, history


def read_response(value: Any, location: str) -> str:
    """Return the text of a response: a text, a chat whose last message is the assistant's, or a list of one of these.

    Raises:
      UserError: it is anything else.
    """
    if isinstance(value, list) and len(value) == 1 and not isinstance(value[0], dict):
        return read_response(value[0], location)
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        role = value[-1].get("role")
        if role == "assistant":
            return _read_content(value[-1].get("content"), location)
        raise UserError(
            f"{location} must be a text, or messages whose last one is the assistant's; got the role {role}"
        )
    if not isinstance(value, str):
        raise UserError(f"{location} must be a text; got {value!r:.60}")
    return value


def _read_content(content: Any, location: str) -> str:
    """Return the content of a message: a text, or parts of type text (`{"type": "text", "text": …}`), joined."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [one.get("text") if isinstance(one, dict) and one.get("type") == "text" else None for one in parts]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(
            f"{location} must hold messages whose content is text, or parts of type text; got {content!r:.80}"
        )
    return "".join(texts)  # type: ignore[arg-type]


def _read_text(value: Any, location: str) -> str:
    """Return a text unchanged and a number as digits (27.0 → `27`); of a list (as in OlympiadBench), the first item."""
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # of any length: it may be too large for a float
    if not isinstance(value, float | Decimal) or not math.isfinite(value):
        raise UserError(f"{location} must be a text or a number; got {value!r}")
    if value == int(value):
        return str(int(value))
    return format(Decimal(repr(value)) if isinstance(value, float) else value.normalize(), "f")


def _is_field(name: str, names: Iterable[str]) -> bool:
    """Return whether a name is the dotted name of a field, and not the name of a whole column."""
    return name.rpartition(".")[0] in names


def _to_json(values: Mapping[str, Any], location: str) -> str:
    try:
        return json.dumps(values, ensure_ascii=False, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{location}: the columns that the reward function takes are stored as JSON, and one cannot be: {error}"
        ) from error


def _plain(value: Any) -> Any:
    """Return a value of a column that JSON lacks: a decimal as a number, a date or time as ISO text."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, date | time):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} {value!r:.40}")
