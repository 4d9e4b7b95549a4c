"""Owns a user's own reward function: what it is given, what it may return, and what is said when it fails.

    def shorter_is_better(completions, answer, **columns):
        return [float(gold in text) - len(text) / 1000 for text, gold in zip(completions, answer, strict=True)]

It is called with lists of one length, as keywords: `completions`, the texts of the responses; `prompts`, the
questions; and the columns of the data that its parameters without a default name (`**columns`: all of them). It
returns a reward for each completion, a float or None (ungradable: left out and counted).
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from stages.core.errors import UserError
from stages.core.user_function import load_function
from stages.tasks import Verdict
from stages.tasks.boxes import last_box
from stages.tasks.graders import Grader

COMPLETIONS = "completions"
_FLAG = "--task-arg reward"


def load_reward(name: str) -> tuple[Grader, Sequence[str] | str, str]:
    """A grader that asks the function, the columns that it wants ("all": every one), and a digest of its file.

    Raises:
      UserError: there is no such function, or it takes no completions.
    """
    function, digest = load_function(name, _FLAG)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise UserError(f"{_FLAG}: the parameters of {name} cannot be told ({error}); wrap it in a function") from error
    if any(one.kind in (one.POSITIONAL_ONLY, one.VAR_POSITIONAL) for one in parameters):
        raise UserError(f"{_FLAG}: {name} must take its arguments by name; found {inspect.signature(function)}")
    wanted = [one.name for one in parameters if one.kind != one.VAR_KEYWORD and one.default is one.empty]
    everything = any(one.kind == one.VAR_KEYWORD for one in parameters)
    if COMPLETIONS not in wanted and not everything:
        raise UserError(f"{_FLAG}: {name} must take `{COMPLETIONS}`; found {inspect.signature(function)}")

    def verify_all(responses: Sequence[str], references: Sequence[str]) -> list[Verdict]:
        rewards = _ask(function, name, list(responses), [_columns(reference) for reference in references])
        return [Verdict(last_box(text), reward) for text, reward in zip(responses, rewards, strict=True)]

    columns = "all" if everything else [one for one in wanted if one != COMPLETIONS]
    return Grader(verify_all, lambda text: (text, None)), columns, digest


def _columns(reference: str) -> dict[str, Any]:
    try:
        columns = json.loads(reference)
    except ValueError:
        columns = None
    if not isinstance(columns, dict):
        raise UserError(f"a reward function is given columns as a JSON object; the reference is {reference[:80]!r}")
    return columns


def _ask(
    function: Callable[..., Any], name: str, completions: list[str], rows: Sequence[dict[str, Any]]
) -> list[float | None]:
    """The function's rewards for completions and their rows' columns, checked."""
    if not completions:
        return []
    try:
        rewards = function(completions=completions, **{key: [row.get(key) for row in rows] for key in rows[0]})
    except (Exception, SystemExit) as error:  # code that is not ours may raise anything
        place = "" if len(rows) == 1 else _culprit(function, name, completions, rows)
        raise UserError(
            place or f"{_FLAG} {name} fails on {_show(completions[0], rows[0])}: {type(error).__name__}: {error}"
        ) from error
    if not hasattr(rewards, "__len__") or isinstance(rewards, str | bytes | dict) or len(rewards) != len(completions):
        found = f"{len(rewards)} values" if hasattr(rewards, "__len__") else f"{type(rewards).__name__} {rewards!r:.60}"
        raise UserError(
            f"{_FLAG} {name} must return a list of {len(completions)} rewards, one per completion; got {found}"
        )
    checked: list[float | None] = []
    for reward, text, row in zip(rewards, completions, rows, strict=True):
        if reward is not None and not (isinstance(reward, Real) and _is_finite(reward)):
            raise UserError(
                f"{_FLAG} {name} must return finite numbers or None; got {reward!r:.60} for {_show(text, row)}"
            )
        checked.append(None if reward is None else float(reward))
    return checked


def _is_finite(number: Real) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond every float
        return False


def _culprit(
    function: Callable[..., Any], name: str, completions: Sequence[str], rows: Sequence[dict[str, Any]]
) -> str:
    """A message that names the first row on which the function fails alone; "" where it fails on none."""
    for text, row in zip(completions, rows, strict=True):
        try:
            _ask(function, name, [text], [row])
        except UserError as error:
            return str(error)
    return ""


def _show(completion: str, row: dict[str, Any]) -> str:
    return f"the row {json.dumps(row, ensure_ascii=False):.120} with the completion {completion[:60]!r}"
