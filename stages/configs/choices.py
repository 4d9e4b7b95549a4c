"""Owns how `--data` and `--task-arg` find their task where several tasks are evaluated at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from stages.core.errors import UserError


class TaskChoice(NamedTuple):
    """A task with its own data and options, as `stages.tasks.open_task` takes them."""

    name: str
    data: str | None
    args: tuple[str, ...]


def pair(tasks: Sequence[str], data: Sequence[str], args: Sequence[str]) -> tuple[TaskChoice, ...]:
    """Each task with what is meant for it: `math500=PATH` and `math500.key=value` for one task, others for all.

    Raises:
      UserError: no task, a task twice, or two places of data for one task.
    """
    if not tasks:
        raise UserError("--task must name at least one task")
    if twice := next((name for name in tasks if list(tasks).count(name) > 1), None):
        raise UserError(f"--task names {twice} twice; each task is evaluated once")
    return tuple(TaskChoice(name, _data_of(name, tasks, data), _args_of(name, tasks, args)) for name in tasks)


def _data_of(task: str, tasks: Sequence[str], data: Sequence[str]) -> str | None:
    own = [given.removeprefix(f"{task}=") for given in data if given.startswith(f"{task}=")]
    common = [given for given in data if not any(given.startswith(f"{name}=") for name in tasks)]
    found = own or common
    if len(found) > 1:
        raise UserError(
            f"--data gives {' and '.join(found)} for {task}; expected one place, as {task}=PATH where tasks differ"
        )
    return found[0] if found else None


def _args_of(task: str, tasks: Sequence[str], args: Sequence[str]) -> tuple[str, ...]:
    others = [f"{name}." for name in tasks if name != task]
    return tuple(given.removeprefix(f"{task}.") for given in args if not given.startswith(tuple(others)))
