"""Make a command of a Config dataclass: every field one flag or argument, documented where the field is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from stages.config import field_types, flag, is_required, item_type, spellings
from stages.places import as_path

HELP_FLAGS = ("--help", "--help-all")


class ConfigCommand(click.Command):
    """A command whose parameters are the fields of a Config; it calls `execute` with an instance.

    A repeatable flag takes several values at once, too: `--max-tokens 2048 4096` is `--max-tokens 2048 --max-tokens
    4096`. Where there are positional arguments, only a flag of fixed choices does, as long as choices follow it.
    """

    def __init__(
        self,
        name: str,
        summary: str,
        config: type,
        execute: Callable[[Any], None],
        *,
        note: str | None = None,
        examples: Sequence[str] = (),
        translate: Callable[[Sequence[str]], list[str]] = list,
        further: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """Build the parameters.

        Args:
          name: what follows `spo` on the command line.
          note: a paragraph below the options in the help.
          examples: command lines that the help ends with.
          translate: rewrites the arguments before they are parsed.
          further: flags with a dot that `translate` takes, for the completion.
        """
        types = field_types(config)
        fields = dataclasses.fields(config)
        params = [_parameter(field, types[field.name]) for field in fields]
        params.append(click.Option(["--debug"], is_flag=True, expose_value=False, help="Print the traceback."))
        for name_of_flag in HELP_FLAGS:
            show = partial(self._show_help, everything=name_of_flag == "--help-all")
            params.append(click.Option([name_of_flag], is_flag=True, is_eager=True, expose_value=False, callback=show))
        super().__init__(name, params=params, help=summary, add_help_option=False)
        self.summary, self.config, self.execute, self.translate = summary, config, execute, translate
        self.note, self.examples, self.further = note, examples, further
        self.repeatable = _repeatable(fields, types)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; while a shell completes them, unfinished ones are no error."""
        translated = args if ctx.resilient_parsing else self.translate(args)
        return super().parse_args(ctx, repeat_flags(translated, self.repeatable))

    def invoke(self, ctx: click.Context) -> None:
        """Call `execute` with the given values; what is left out has the default of the Config."""
        given = {
            name: value
            for name, value in ctx.params.items()
            if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
        }
        self.execute(self.config(**given))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the flags that begin so, those with a dot once there is one."""
        further = self.further() if "." in incomplete else ()
        dotted = [CompletionItem(name) for name in further if name.startswith(incomplete)]
        return [*super().shell_complete(ctx, incomplete), *dotted]

    def _show_help(self, ctx: click.Context, _: click.Parameter, asked: bool, *, everything: bool) -> None:
        if not asked or ctx.resilient_parsing:
            return
        from spo_cli.help import show_command

        assert self.name is not None
        show_command(
            self.name, self.summary, self.config, everything=everything, note=self.note, examples=self.examples
        )
        ctx.exit()


def repeat_flags(args: Sequence[str], repeatable: Mapping[str, Collection[str] | None]) -> list[str]:
    """Write `--stop a b` as `--stop a --stop b`; other arguments stay as they are.

    Args:
      repeatable: flag → the values that may follow its first one; None: any up to the next flag.
    """
    rest, repeated = list(args), list[str]()
    while rest:
        word = rest.pop(0)
        repeated.append(word)
        if word == "--":
            return repeated + rest
        if word not in repeatable or not rest or rest[0].startswith("-"):
            continue
        repeated.append(rest.pop(0))
        allowed = repeatable[word]
        while rest and not rest[0].startswith("-") and (allowed is None or rest[0] in allowed):
            repeated += [word, rest.pop(0)]
    return repeated


def _repeatable(
    fields: Sequence[dataclasses.Field[Any]], types: Mapping[str, Any]
) -> dict[str, Collection[str] | None]:
    """Return the flags that take several values at once, as `repeat_flags` takes them."""
    has_arguments = any(field.metadata["argument"] for field in fields)
    found: dict[str, Collection[str] | None] = {}
    for field in fields:
        kind, several = item_type(types[field.name])
        choices = get_args(kind) if get_origin(kind) is Literal else None
        if several and not field.metadata["argument"] and (choices or not has_arguments):
            found |= dict.fromkeys(spellings(field), choices if has_arguments else None)
    return found


def _parameter(field: dataclasses.Field[Any], annotation: Any) -> click.Parameter:
    """Return the click parameter of a field; defaults stay with the Config."""
    kind, several = item_type(annotation)
    if field.metadata["argument"]:
        return click.Argument(
            [field.name],
            type=_Value(kind),
            nargs=-1 if several else 1,
            required=is_required(field),
            metavar=flag(field),
        )
    help, names = field.metadata["help"], spellings(field)
    if kind is bool:
        switch = f"{flag(field)}/{flag(field).replace('--', '--no-', 1)}"
        return click.Option([field.name, switch, *names[1:]], required=is_required(field), help=help)
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    # `validate` checks each of several choices, and names all of them in its error
    type = click.Choice(choices) if choices and not several else _Value(kind, choices)
    return click.Option([field.name, *names], type=type, multiple=several, required=is_required(field), help=help)


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None


_PARSERS: dict[Any, Callable[[str], Any]] = {int: _whole_number, float: _number, Path: as_path}


class _Value(click.ParamType):
    """A value of a Config field, read from its text."""

    def __init__(self, kind: Any, choices: Sequence[str] = ()) -> None:
        self.name = "value"
        self.parse = _PARSERS.get(kind, str)
        self.choices = choices

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read the text, or fail with what was expected."""
        try:
            return self.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the choices that begin so; for a path, and a text that may be one, the shell's own file names."""
        if self.choices:
            return [CompletionItem(choice) for choice in self.choices if choice.startswith(incomplete)]
        return [CompletionItem(incomplete, type="file")] if self.parse in (str, as_path) else []
