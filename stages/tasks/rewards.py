"""A user's reward function as a grader: how it is called, and checks of what it returns.

    def shorter_is_better(completions, answer, **columns):
        return [float(gold in text) - len(text) / 1000 for text, gold in zip(completions, answer, strict=True)]

The function is called with keyword arguments, all lists of the same length: `completions` (the texts of the responses),
`prompts` (the questions) and the columns of the data. It receives the columns that its parameters without a default
name, or all of them if it has `**columns`. It returns one reward per completion: a float, or None for an ungradable
response, which is left out and counted.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, NamedTuple

from stages.core.errors import UserError
from stages.core.json_files import parse_json
from stages.core.user_function import load_function
from stages.tasks.boxes import last_box
from stages.tasks.graders import Grader
from stages.tasks.verdicts import Place, Reason, Verdict

COMPLETIONS = "completions"
_FLAG = "--task-arg reward"


class RewardFunction(NamedTuple):
    """A loaded reward function.

    Attributes:
      grader: calls the function; its references are JSON objects of the columns.
      columns: the columns that the function takes; "all": every one.
      digest: digest of the file that defines the function.
    """

    grader: Grader
    columns: Sequence[str] | str
    digest: str


def load_reward(name: str) -> RewardFunction:
    """Load a reward function.

    Args:
      name: `package.module:function`.

    Raises:
      UserError: the function does not exist, or it does not take `completions` as a keyword argument.
    """
    function, digest = load_function(name, _FLAG)
    columns = _columns_of_signature(function, name)

    def verify_all(responses: Sequence[str], references: Sequence[str]) -> list[Verdict]:
        rewards = _call(function, name, list(responses), [_parse_columns(reference) for reference in references])
        return [_verdict(last_box(text), reward) for text, reward in zip(responses, rewards, strict=True)]

    return RewardFunction(Grader(verify_all, lambda text: (text, None)), columns, digest)


def _verdict(box: str | None, reward: float | None) -> Verdict:
    """Return a reward as a verdict; its answer, which results are grouped by, is the last box."""
    place = Place.NOWHERE if box is None else Place.BOX
    return Verdict(box, reward, Reason.REWARD_FUNCTION, place, box)


def _columns_of_signature(function: Callable[..., Any], name: str) -> Sequence[str] | str:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:  # some functions written in C
        raise UserError(f"{_FLAG}: {name} has no readable signature ({error}); wrap it in a Python function") from error
    if any(one.kind in (one.POSITIONAL_ONLY, one.VAR_POSITIONAL) for one in parameters):
        raise UserError(f"{_FLAG}: {name} must take its arguments by name; found {inspect.signature(function)}")
    required = [one.name for one in parameters if one.kind != one.VAR_KEYWORD and one.default is one.empty]
    takes_all = any(one.kind == one.VAR_KEYWORD for one in parameters)
    if COMPLETIONS not in required and not takes_all:
        raise UserError(f"{_FLAG}: {name} must take `{COMPLETIONS}`; found {inspect.signature(function)}")
    return "all" if takes_all else [one for one in required if one != COMPLETIONS]


def _parse_columns(reference: str) -> dict[str, Any]:
    try:
        columns = parse_json(reference, "the reference")
    except UserError:
        columns = None
    if not isinstance(columns, dict):
        raise UserError(
            f"{_FLAG}: the reference of a question must be a JSON object of the columns; got {reference[:80]!r}. "
            "Sample the trajectories with the same reward function"
        )
    return columns


def _call(
    function: Callable[..., Any], name: str, completions: list[str], rows: Sequence[dict[str, Any]]
) -> list[float | None]:
    """Return the checked rewards of completions, given the columns of the row of each.

    Raises:
      UserError: the function raises, or returns anything but one finite number or None per completion.
    """
    if not completions:
        return []
    try:
        rewards = function(completions=completions, **{key: [row.get(key) for row in rows] for key in rows[0]})
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        single_failure = "" if len(rows) == 1 else _first_single_failure(function, name, completions, rows)
        raise UserError(
            single_failure
            or f"{_FLAG} {name} fails on {_describe(completions[0], rows[0])}: {type(error).__name__}: {error}"
        ) from error
    if not hasattr(rewards, "__len__") or isinstance(rewards, str | bytes | dict) or len(rewards) != len(completions):
        found = f"{len(rewards)} values" if hasattr(rewards, "__len__") else f"{type(rewards).__name__} {rewards!r:.60}"
        raise UserError(
            f"{_FLAG} {name} must return a list of {len(completions)} rewards, one per completion; got {found}"
        )
    return [
        _check_reward(reward, name, text, row) for reward, text, row in zip(rewards, completions, rows, strict=True)
    ]


def _check_reward(reward: Any, name: str, completion: str, row: dict[str, Any]) -> float | None:
    if reward is None:
        return None
    if not (isinstance(reward, Real) and _is_finite(reward)):
        raise UserError(
            f"{_FLAG} {name} must return finite numbers or None; got {reward!r:.60} for {_describe(completion, row)}"
        )
    return float(reward)


def _is_finite(number: Real) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer larger than any float
        return False


def _first_single_failure(
    function: Callable[..., Any], name: str, completions: Sequence[str], rows: Sequence[dict[str, Any]]
) -> str:
    """Return the error of the first row on which the function fails alone; "" if it fails on no single row."""
    for text, row in zip(completions, rows, strict=True):
        try:
            _call(function, name, [text], [row])
        except UserError as error:
            return str(error)
    return ""


def _describe(completion: str, row: dict[str, Any]) -> str:
    return f"the row {json.dumps(row, ensure_ascii=False):.120} with the completion {completion[:60]!r}"
