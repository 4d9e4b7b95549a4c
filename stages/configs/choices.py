"""Assign the values of `--data` and `--task-arg` to tasks where `spo eval` takes several of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from stages.core.errors import UserError


class TaskChoice(NamedTuple):
    """A task with its own data and options: the arguments of `stages.tasks.open_task`."""

    name: str
    data: str | None
    args: tuple[str, ...]


def pair_tasks(tasks: Sequence[str], data: Sequence[str], args: Sequence[str]) -> tuple[TaskChoice, ...]:
    """Return each task with its own data and options.

    Args:
      tasks: names of tasks.
      data: `math500=PATH` applies to one task, a plain `PATH` to every task without data of its own.
      args: `math500.key=value` applies to one task, `key=value` to all of them.

    Raises:
      UserError: no task, the same task twice, or two places of data for one task.
    """
    if not tasks:
        raise UserError("--task must name at least one task")
    if twice := next((name for name in tasks if list(tasks).count(name) > 1), None):
        raise UserError(f"--task names {twice} twice; each task is evaluated once")
    return tuple(TaskChoice(name, _data_of(name, tasks, data), _args_of(name, tasks, args)) for name in tasks)


def _data_of(task: str, tasks: Sequence[str], data: Sequence[str]) -> str | None:
    """Return the place of a task's data; a value for this task has priority over one for all tasks."""
    own = [given.removeprefix(f"{task}=") for given in data if given.startswith(f"{task}=")]
    common = [given for given in data if not any(given.startswith(f"{name}=") for name in tasks)]
    found = own or common
    if len(found) > 1:
        raise UserError(
            f"--data gives {' and '.join(found)} for {task}; expected one place, as {task}=PATH where tasks differ"
        )
    return found[0] if found else None


def _args_of(task: str, tasks: Sequence[str], args: Sequence[str]) -> tuple[str, ...]:
    """Return the options of a task: those for all tasks and its own, without the name of the task."""
    others = [f"{name}." for name in tasks if name != task]
    return tuple(given.removeprefix(f"{task}.") for given in args if not given.startswith(tuple(others)))
