"""Declare the options of a stage: a Config is a frozen dataclass whose fields describe their own flags.

`option` is the only place where a flag is documented. The command line, the recipe reader and the fingerprint read the
same field. `result=False` marks a field that cannot change the rows that a stage writes (batch sizes, devices, paths:
an input is identified by its digest, not by its location); such a field stays out of the fingerprint.

This module is imported for `--help`, so it must import nothing heavy (torch, numpy, pyarrow).
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import operator
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args, get_origin

from stages.core.errors import UserError, one_of

_LARGEST, _LARGEST_SEED = 2**31 - 1, 2**63 - 1
"""The largest whole numbers that an option takes: the libraries below use integers of these sizes."""


def option(
    help: str,
    *,
    default: Any = dataclasses.MISSING,
    result: bool = True,
    added: bool = False,
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
    record: Callable[[Any], Any] | None = None,
) -> Any:
    """Declare a field of a Config class.

    Args:
      help: one sentence that describes the effect of the value. `--help` appends the default to it.
      default: value if the user gives none; an option without a default is required.
      result: whether the value can change the rows that are written. If so, it enters the fingerprint.
      added: whether the option came later than other options of its stage. It enters the fingerprint only where its
        value is not the default, so that earlier work stays up to date.
      argument: whether the value is positional on the command line instead of `--name`; a tuple takes one or more.
      short: a second spelling of the flag, for example "-m" or "--output-dir".
      group: heading in the help. Default: `GROUP` of the class that declares the field (see `group_of`).
      common: whether `--help` shows the option; `--help-all` shows every option. Required options are always shown.
      default_text: description of a default that needs one, such as None.
      metavar: name of the value in the help, such as "KEY=VALUE". Default: named after the type (see `spo_cli.help`).
      minimum, maximum: inclusive bounds of a number.
      above, below: exclusive bounds of a number.
      record: how the fingerprint and the footer hold a value that is not None. Default: as given.
    """
    metadata = {
        "help": help,
        "result": result,
        "added": added,
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
        "record": record,
    }
    return dataclasses.field(default=default, metadata=metadata)


def flag(field: dataclasses.Field[Any]) -> str:
    """Return the primary spelling of a field: `--num-questions`, or `TRAJECTORIES` for a positional argument."""
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

    A class that redeclares an inherited field without a `GROUP` leaves the field in the group of its ancestor.
    """
    # `vars` and not `getattr`: a subclass must not apply its GROUP to inherited fields.
    class_groups = (vars(one)["GROUP"] for one in declaring_classes(config, field) if "GROUP" in vars(one))
    return field.metadata["group"] or next(class_groups, "Options")


def declaring_classes(config: type, field: dataclasses.Field[Any]) -> list[type]:
    """Return the classes that declare a field, the most derived first."""
    return [one for one in config.__mro__ if field.name in inspect.get_annotations(one)]


def field_types(config: type) -> dict[str, Any]:
    """Return the resolved type of every field of a Config class."""
    return typing.get_type_hints(config)


def validate(config: Any) -> None:
    """Check the choices and bounds of every field; call it from `__post_init__`.

    Raises:
      UserError: a value is not among the choices or out of bounds. The message names the flag and the accepted values.
    """
    hints = field_types(type(config))
    for field in dataclasses.fields(config):
        value, (kind, _) = getattr(config, field.name), item_type(hints[field.name])
        for item in value if isinstance(value, tuple) else (value,):
            if item is not None and (problem := _problem(item, kind, field.metadata, field.name)):
                raise UserError(f"{flag(field)} must be {problem}")


def unread_options(config: Any) -> dict[str, str]:
    """Return each option that the stage does not read with the values of the others → the value that it needs.

    A Config class says so in a method `unread`. A command refuses such an option where the user gives it, and so does a
    table of a recipe, except [run], whose options are for several stages.
    """
    return config.unread() if hasattr(config, "unread") else {}


def _problem(value: Any, kind: Any, bounds: Mapping[str, Any], name: str) -> str | None:
    """Return the requirement that a value violates and the value, to follow "FLAG must be"; None for a valid value."""
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    if choices and value not in choices:
        return one_of(map(str, choices), value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    most = _LARGEST_SEED if name == "seed" else _LARGEST
    required = (
        (isinstance(value, int) and abs(value) > most and f"a whole number of at most {most}")
        or (not math.isfinite(value) and "a finite number")
        or (bounds["minimum"] is not None and value < bounds["minimum"] and f"at least {bounds['minimum']:g}")
        or (bounds["maximum"] is not None and value > bounds["maximum"] and f"at most {bounds['maximum']:g}")
        or (bounds["above"] is not None and value <= bounds["above"] and f"greater than {bounds['above']:g}")
        or (bounds["below"] is not None and value >= bounds["below"] and f"less than {bounds['below']:g}")
    )
    return f"{required}; got {value!r}" if required else None


def results_config(config: Any) -> dict[str, Any]:
    """Return the fields that can change the written rows, as JSON values for the fingerprint and the footer.

    An integer given for a float field becomes a float, so that `temperature = 1` and `1.0` have the same fingerprint.
    """
    hints = field_types(type(config))
    return {
        field.name: _json_value(_recorded(config, field), bare_type(hints[field.name]))
        for field in dataclasses.fields(config)
        if field.metadata["result"] and not (field.metadata["added"] and getattr(config, field.name) == field.default)
    }


def _recorded(config: Any, field: dataclasses.Field[Any]) -> Any:
    """Return the value of a field in the form that its `record` gives it."""
    value, record = getattr(config, field.name), field.metadata["record"]
    return value if record is None or value is None else record(value)


def to_arguments(config: Any) -> list[list[str]]:
    """Return the command line that produces a Config: positional values, then every flag that differs from its default.

    Returns:
      One list of words for each option: [value], [flag, value], [flag=value] or [flag].
    """
    fields = sorted(dataclasses.fields(config), key=lambda field: not field.metadata["argument"])
    words: list[list[str]] = []
    for field in fields:
        value = getattr(config, field.name)
        if value != field.default and value is not None:
            words += [_option_words(field, item) for item in (value if isinstance(value, tuple) else (value,))]
    return words


def _option_words(field: dataclasses.Field[Any], value: Any) -> list[str]:
    """Return the words that set one value of an option."""
    name = flag(field)
    if field.metadata["argument"]:
        return [str(value)]
    if isinstance(value, bool):
        return [name if value else name.replace("--", "--no-", 1)]
    # With a space, a value such as -0.5 would be read as a flag.
    return [f"{name}={value}"] if str(value).startswith("-") else [name, str(value)]


def bare_type(annotation: Any) -> Any:
    """Return `X` for the annotation `X | None`, and any other annotation unchanged; `X` may be a union itself."""
    if get_origin(annotation) in (typing.Union, types.UnionType):
        return functools.reduce(operator.or_, (one for one in get_args(annotation) if one is not type(None)))
    return annotation


def _json_value(value: Any, kind: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return float(value) if kind is float and value is not None else value
