"""How a stage's Config is written: a frozen dataclass whose fields say what their flag means.

`option` is the one place where a flag is documented; the command line, the recipe reader and the fingerprint all
read the same field. `result=False` marks a field that cannot change the rows a stage writes (batch sizes, devices,
paths: an input is known by its digest, not by where it lies), so it stays out of the fingerprint.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from stages.core.errors import UserError


def option(
    help: str,
    *,
    default: Any = dataclasses.MISSING,
    result: bool = True,
    argument: bool = False,
    short: str | None = None,
    group: str | None = None,
    common: bool = False,
    default_text: str | None = None,
    metavar: str | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A Config field.

    Args:
      help: one sentence that says what the value does. `--help` appends the default to it.
      default: an option without one is required.
      result: whether the value can change the rows that are written (then it enters the fingerprint).
      argument: positional on the command line instead of `--name`; a tuple takes one or more.
      short: another spelling of the flag, e.g. "-m" or "--output-dir".
      group: heading in the help; by default, `GROUP` of the class that declares the field (see `group_of`).
      common: whether `--help` shows it; `--help-all` shows every option. Required options are always shown.
      default_text: the default in words, for a default that does not speak for itself, such as None.
      metavar: the value in the help, such as "KEY=VALUE"; by default, named after the type (see `spo_cli.help`).
      minimum, maximum: inclusive bounds. above, below: exclusive ones.
    """
    metadata = {
        "help": help,
        "result": result,
        "argument": argument,
        "short": short,
        "group": group,
        "common": common,
        "default_text": default_text,
        "metavar": metavar,
        "minimum": minimum,
        "maximum": maximum,
        "above": above,
        "below": below,
    }
    return dataclasses.field(default=default, metadata=metadata)


def flag(field: dataclasses.Field[Any]) -> str:
    """What the user types for a field: `--num-questions`, or `TRAJECTORIES` for a positional argument."""
    return field.name.upper() if field.metadata["argument"] else "--" + field.name.replace("_", "-")


def spellings(field: dataclasses.Field[Any]) -> list[str]:
    """Return every spelling of a flag: `["--model", "-m"]`."""
    return [flag(field), *([field.metadata["short"]] if field.metadata["short"] else [])]


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Return whether a field has no default."""
    return field.default is dataclasses.MISSING


def item_type(annotation: Any) -> tuple[Any, bool]:
    """Return the type of one value of an option, and whether the option takes several (`tuple[X, ...]`)."""
    kind = bare_type(annotation)
    return (bare_type(get_args(kind)[0]), True) if get_origin(kind) is tuple else (kind, False)


def group_of(config: type, field: dataclasses.Field[Any]) -> str:
    """Return the heading of a field in the help: its own `group`, else `GROUP` of the class that declares it.

    A class that declares an inherited field again, and has no `GROUP`, leaves the field in the group of its ancestor.
    """
    of_class = (vars(one)["GROUP"] for one in declaring_classes(config, field) if "GROUP" in vars(one))
    return field.metadata["group"] or next(of_class, "Options")


def declaring_classes(config: type, field: dataclasses.Field[Any]) -> list[type]:
    """Return the class that declares a field, then those of its ancestors that declare it, too."""
    return [one for one in config.__mro__ if field.name in inspect.get_annotations(one)]


def field_types(config: type) -> dict[str, Any]:
    """Resolved type of every field of a Config class."""
    return typing.get_type_hints(config)


def validate(config: Any) -> None:
    """Check choices and bounds of every field; call it from `__post_init__`.

    Raises:
      UserError: naming the flag, what it takes and what was given.
    """
    hints = field_types(type(config))
    for field in dataclasses.fields(config):
        value, (kind, _) = getattr(config, field.name), item_type(hints[field.name])
        for item in value if isinstance(value, tuple) else (value,):
            if item is not None and (problem := _problem(item, kind, field.metadata)):
                raise UserError(f"{flag(field)} must be {problem}; got {item!r}")


def _problem(value: Any, kind: Any, bounds: Mapping[str, Any]) -> str | None:
    """What a value of an option must be and is not; None where it is."""
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    if choices and value not in choices:
        return f"one of {', '.join(map(str, choices))}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return (
        (not math.isfinite(value) and "a finite number")
        or (bounds["minimum"] is not None and value < bounds["minimum"] and f"at least {bounds['minimum']:g}")
        or (bounds["maximum"] is not None and value > bounds["maximum"] and f"at most {bounds['maximum']:g}")
        or (bounds["above"] is not None and value <= bounds["above"] and f"greater than {bounds['above']:g}")
        or (bounds["below"] is not None and value >= bounds["below"] and f"less than {bounds['below']:g}")
        or None
    )


def results_config(config: Any) -> dict[str, Any]:
    """The fields that can change what is written, as JSON values: what the fingerprint and the footer hold.

    A whole number where a float is meant becomes that float: `temperature = 1` is the same work as 1.0.
    """
    hints = field_types(type(config))
    return {
        field.name: _json_value(getattr(config, field.name), bare_type(hints[field.name]))
        for field in dataclasses.fields(config)
        if field.metadata["result"]
    }


def to_arguments(config: Any) -> list[list[str]]:
    """The command line that gives this Config: what stands in place first, then each flag that is not at its default.

    Returns one list for each: the value in place, a flag with its value, or a flag alone.
    """
    fields = sorted(dataclasses.fields(config), key=lambda field: not field.metadata["argument"])
    written = list[list[str]]()
    for field in fields:
        value = getattr(config, field.name)
        if value != field.default and value is not None:
            written += [_written(field, item) for item in (value if isinstance(value, tuple) else (value,))]
    return written


def _written(field: dataclasses.Field[Any], value: Any) -> list[str]:
    name = flag(field)
    if field.metadata["argument"]:
        return [str(value)]
    if isinstance(value, bool):
        return [name if value else name.replace("--", "--no-", 1)]
    return [f"{name}={value}"] if str(value).startswith("-") else [name, str(value)]


def bare_type(annotation: Any) -> Any:
    """`X` of `X | None`, anything else as it is."""
    if get_origin(annotation) in (typing.Union, types.UnionType):
        (annotation,) = (one for one in get_args(annotation) if one is not type(None))
    return annotation


def _json_value(value: Any, kind: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return float(value) if kind is float and value is not None else value
