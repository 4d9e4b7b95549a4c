"""Owns the way from a row of data to a question: which column holds what, and what is wrong with a row."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stages.core.errors import UserError
from stages.tasks import Question
from stages.tasks.graders import Grader

_PROMPTS = "prompts"
ROLES: dict[str, tuple[str, ...]] = {
    "question": ("question", "problem", "prompt"),
    "answer": ("answer", "final_answer", "reference"),
    "solution": ("solution",),
    "id": ("unique_id",),
    "subject": ("subject", "type", "subfield", "data_topic"),
    "level": ("level",),
}
"""What a column may hold → the names that public data sets give it, of which the first that is there is taken."""


@dataclass(frozen=True)
class Columns:
    """Turns rows into questions.

    Attributes:
      grader: takes references and solutions out of the answers.
      named: role → the column that the user names for it.
      wanted: columns whose values become the reference, as a JSON object, in place of an answer (a reward function's;
        `prompts` is the question); None: there is an answer; "all": every column.
      skip_unanswered: leave out rows whose answer is an empty box, as two of MATH are.
    """

    grader: Grader
    named: Mapping[str, str] = field(default_factory=dict)
    wanted: Sequence[str] | str | None = None
    skip_unanswered: bool = False

    def choose(self, there: Sequence[str], where: str) -> list[str]:
        """The columns to read.

        Raises:
          UserError: naming what is missing, and what is there.
        """
        roles = self.roles(there, where)
        missing = [] if "question" in roles else ["question"]
        if self.wanted is None and "answer" not in roles and "solution" not in roles:
            missing.append("answer")
        if missing:
            names = " and no ".join(" or ".join(ROLES[role]) for role in missing)
            hints = " and ".join(f"--task-arg {role}=…" for role in missing)
            raise UserError(f"{where} has no column {names}; found {', '.join(there)}. Name yours with {hints}")
        extra = there if self.wanted == "all" else [name for name in self.wanted or () if name != _PROMPTS]
        if absent := [name for name in extra if name not in there]:
            raise UserError(
                f"{where} has no column {', '.join(absent)}, which the reward function asks for; "
                f"found {', '.join(there)}"
            )
        return list(dict.fromkeys([*roles.values(), *extra]))

    def roles(self, there: Sequence[str], where: str) -> dict[str, str]:
        """Role → the column that has it, for those that one has."""
        if absent := [name for name in self.named.values() if name not in there]:
            raise UserError(f"{where} has no column {' and no '.join(absent)}; found {', '.join(there)}")
        by_habit = {role: next((name for name in names if name in there), None) for role, names in ROLES.items()}
        return {role: name for role, name in {**by_habit, **self.named}.items() if name}

    def question(self, row: Mapping[str, Any], where: str, task: str, name: str) -> Question | None:
        """A row's question; None where it is left out.

        Args:
          name: with the task's, the question's id, unless a column holds one.

        Raises:
          UserError: a column that is empty or of the wrong kind, an answer that the grader cannot compare with.
        """
        roles = self.roles(list(row), where)

        def value_of(role: str) -> str | None:
            column = roles.get(role)
            return (
                None if column is None or row[column] is None else _read_text(row[column], f"{where}: column {column}")
            )

        prompt, history = _read_prompt(row[roles["question"]], f"{where}: column {roles['question']}")
        solution = value_of("solution")
        if self.wanted is None:
            role = "answer" if "answer" in roles else "solution"
            reference, worked = self.grader.take_apart(value_of(role) or "")
            if not reference and self.skip_unanswered:
                return None
            if not self.grader.is_reference(reference):
                found = row[roles[role]]
                raise UserError(
                    f"{where}: the answer in column {roles[role]} must be {self.grader.expects}; "
                    f"got {found[-60:] if isinstance(found, str) else found!r}"
                )
            solution = solution or worked
        else:
            asked = [*row, _PROMPTS] if self.wanted == "all" else self.wanted
            reference = _as_json({name: prompt if name == _PROMPTS else row[name] for name in asked}, where)
        labels = {role: value_of(role) for role in ("subject", "level")}
        return Question(
            id=f"{task}-{value_of('id') or name}",
            prompt=prompt,
            reference=reference,
            solution=f" {solution.strip()}" if solution else None,
            metadata={role: label.removeprefix("Level ") for role, label in labels.items() if label},
            history=history,
        )


def _read_prompt(value: Any, where: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """A question's text, and the messages before it: a text, or messages `{"role": …, "content": …}` of a chat."""
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        messages = tuple((str(one.get("role")), one.get("content")) for one in value)
        role, value = messages[-1]
        if role != "user" or not all(isinstance(content, str) for _, content in messages):
            raise UserError(f"{where}: a chat must be messages with role and content and end with the user's")
        history = messages[:-1]
    else:
        history = ()
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where} must be a text that is not empty; got {value!r}")
    return value, history  # type: ignore[return-value]


def _read_text(value: Any, where: str) -> str:
    """A text as it is, a number as digits (27.0 → `27`), of a list of texts (OlympiadBench has those) the first."""
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{where} must be a text or a number; got {value!r}")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _as_json(values: Mapping[str, Any], where: str) -> str:
    try:
        return json.dumps(values, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{where}: the columns that the reward function asks for become JSON, so that artefacts hold them: {error}"
        ) from error
