"""A Config dataclass becomes a command: every field of it one flag or argument, documented where the field is."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand

from stages.config import bare_type, field_types, flag
from stages.places import as_path


def build_command(
    name: str,
    help: str,
    config: type,
    execute: Callable[[Any], None],
    *,
    epilog: str | None = None,
    translate: Callable[[Sequence[str]], list[str]] = list,
) -> TyperCommand:
    """The Typer command that parses the flags of `config` and calls `execute` with an instance of it.

    A repeatable flag takes several values at once, too: `--max-tokens 2048 4096` is `--max-tokens 2048 --max-tokens
    4096`. Where there are positional arguments, only a flag of fixed choices does, as long as they follow.
    """

    def callback(debug: bool, **values: Any) -> None:
        del debug  # the application has seen it: errors outlive this call
        execute(config(**{key: tuple(x) if isinstance(x, list) else x for key, x in values.items()}))

    types = field_types(config)
    # Typer shows options in the order of the signature: what must be given comes first, what other verbs share last.
    fields = sorted(
        dataclasses.fields(config),
        key=lambda field: (not field.metadata["argument"], not _required(field), _ancestor(config, field)),
    )
    parameters = [_parameter(field, types[field.name]) for field in fields]
    debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")]
    parameters.append(inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=debug))
    callback.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]

    kinds = {field: bare_type(types[field.name]) for field in fields if not field.metadata["argument"]}
    items = {field: get_args(kind)[0] for field, kind in kinds.items() if get_origin(kind) is tuple}
    repeated: dict[str, Collection[str] | None] = {name: None for field in items for name in _names(field)}
    if any(field.metadata["argument"] for field in fields):
        literal = {field: get_args(item) for field, item in items.items() if get_origin(item) is Literal}
        repeated = {name: choices for field, choices in literal.items() for name in _names(field)}

    class Command(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            return super().parse_args(ctx, spread(translate(args), repeated))

    app = typer.Typer(add_completion=False)
    app.command(name, help=help, epilog=epilog, cls=Command)(callback)
    command = typer.main.get_command(app)
    assert isinstance(command, TyperCommand)
    return command


def _parameter(field: dataclasses.Field[Any], annotation: Any) -> inspect.Parameter:
    base = bare_type(annotation)
    shown: dict[str, Any] = {"help": _escape_markup(field.metadata["help"])}
    item = get_args(base)[0] if get_origin(base) is tuple else base
    if item in _PARSERS:
        shown["parser"] = _PARSERS[item]
    if field.metadata["argument"]:
        info = typer.Argument(metavar=flag(field), **shown)
    else:
        negative = "/--no-" + flag(field).removeprefix("--") if base is bool else ""
        first, *others = _names(field)
        info = typer.Option(first + negative, *others, **shown)
    if get_origin(base) is tuple:  # Typer knows what may be repeated as lists
        annotation = list[str if get_origin(item) is Literal else item]
    default = inspect.Parameter.empty if _required(field) else field.default
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=list(default) if isinstance(default, tuple) else default,
        annotation=Annotated[annotation, info],
    )


def spread(args: Sequence[str], repeated: Mapping[str, Collection[str] | None]) -> list[str]:
    """Repeat a flag before each of the values that follow it, up to the next flag.

    Args:
      repeated: the flags that may be repeated, with the only values that follow them; None: any.
    """
    spread, flag, values = list[str](), None, 0
    for place, word in enumerate(args):
        if word == "--":
            return spread + list(args[place:])
        if word.startswith("-"):
            flag, values = word if word in repeated else None, 0
        elif flag:
            values, allowed = values + 1, repeated[flag]
            if values > 1 and allowed is not None and word not in allowed:
                flag = None
            elif values > 1:
                spread.append(flag)
        spread.append(word)
    return spread


def _names(field: dataclasses.Field[Any]) -> list[str]:
    """The spellings of a flag."""
    return [flag(field), field.metadata["short"]] if field.metadata["short"] else [flag(field)]


def _ancestor(config: type, field: dataclasses.Field[Any]) -> int:
    """How far up a Config's ancestors a field is declared; 0 in the class itself."""
    declares = [field.name in inspect.get_annotations(ancestor) for ancestor in config.__mro__]
    return declares.index(True)


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING


def _whole_number(text: str | int) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None


def _number(text: str | float) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None


_PARSERS: dict[type, Callable[[Any], Any]] = {int: _whole_number, float: _number, Path: as_path}


def _escape_markup(text: str) -> str:
    """Keep Rich from reading `[cpu]` in a help text as a style."""
    return re.sub(r"\[(?=[a-z#/@])", r"\\[", text)
