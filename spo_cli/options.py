"""Build a command from a Config dataclass: each field is one flag or argument, documented where it is declared.

Typer documents one way to declare parameters: a callable whose parameters are `Annotated[type, typer.Option(...)]`.
Here that callable is a dataclass made from the fields of the Config (`_parameters`), so Python writes its signature.
The other way, to construct `typer.core.TyperOption`, needs a type descriptor that only private modules of Typer make,
and these modules change between versions.

Defaults stay with the Config: for Typer, an optional option has the default None. Typer converts values
with pydantic, which takes about 0.1 s to import and set up. Help and completion do not wait for it: the flags for help
are eager and of type bool, which Typer does not convert, and a completion converts nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand

from spo_cli.help import show_command
from spo_cli.vendored import CompletionItem, Context, Parameter
from stages.core.config import field_types, flag, is_required, item_type, spellings, unread_options
from stages.core.errors import UserError
from stages.core.paths import AnyPath, as_path

HELP_FLAGS = ("--help", "--help-all")


class ConfigCommand(TyperCommand):
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
        flags = [_help_flag(name_of_flag, self._show_help) for name_of_flag in HELP_FLAGS]
        super().__init__(name, params=_parameters(config, flags), help=summary, add_help_option=False)
        self.summary, self.config, self.execute, self.translate = summary, config, execute, translate
        self.note, self.examples, self.further = note, examples, further
        self.repeatable = _repeatable(config)

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse the arguments; keep them unparsed during completion, which needs no values."""
        if ctx.resilient_parsing:
            ctx.args = args
            return args
        return super().parse_args(ctx, repeat_flags(self.translate(args), self.repeatable))

    def invoke(self, ctx: Context) -> None:
        """Call `execute` with the given values, and the defaults of the Config for all others."""
        given = {name: value for name, value in ctx.params.items() if value not in (None, ())}
        config = self.config(**{name: tuple(x) if isinstance(x, list) else x for name, x in given.items()})
        for name, needed in unread_options(config).items():
            if name in given and given[name] != getattr(type(config), name):
                raise UserError(f"--{name.replace('_', '-')} is an option of {needed}: omit it")
        self.execute(config)

    def shell_complete(self, ctx: Context, incomplete: str) -> list[CompletionItem]:
        """Return the flags that start with `incomplete` and are not given yet; dotted flags after a dot only."""
        further = self.further() if "." in incomplete else ()
        found = [*super().shell_complete(ctx, incomplete), *map(CompletionItem, further)]
        once = [{*one.opts, *one.secondary_opts} for one in self.params if not one.multiple]
        given = set[str]().union(*(names for names in once if names & set(ctx.args)))
        return [item for item in found if item.value.startswith(incomplete) and item.value not in given]

    def _show_help(self, everything: bool) -> None:
        assert self.name is not None
        show_command(
            self.name, self.summary, self.config, everything=everything, note=self.note, examples=self.examples
        )


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


def _repeatable(config: type) -> dict[str, Collection[str] | None]:
    """Return the flags that take several values at once, as `repeat_flags` takes them."""
    types, fields = field_types(config), dataclasses.fields(config)
    has_arguments = any(field.metadata["argument"] for field in fields)
    found: dict[str, Collection[str] | None] = {}
    for field in fields:
        kind, several = item_type(types[field.name])
        choices = get_args(kind) if get_origin(kind) is Literal else None
        if several and not field.metadata["argument"] and (choices or not has_arguments):
            found |= dict.fromkeys(spellings(field), choices if has_arguments else None)
    return found


_Declared = tuple[str, Any] | tuple[str, Any, Any]
"""Name, annotation and default of a parameter, as `dataclasses.make_dataclass` takes them."""


def _parameters(config: type, flags: Sequence[_Declared]) -> list[Parameter]:
    """Return Typer's parameters of a Config, and of further flags."""
    types = field_types(config)
    declared = [_declaration(field, types[field.name]) for field in dataclasses.fields(config)]
    debug = typer.Option("--debug", expose_value=False, help="Print the traceback.")
    declared.append(("debug", Annotated[bool, debug], False))
    app = typer.Typer(add_completion=False)
    app.command()(dataclasses.make_dataclass("Given", [*declared, *flags], kw_only=True))
    return typer.main.get_command(app).params


def _declaration(field: dataclasses.Field[Any], annotation: Any) -> _Declared:
    """Return the parameter of a field as Typer reads it."""
    kind, several = item_type(annotation)
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    settings: dict[str, Any] = {"parser": _PARSERS[kind]} if kind in _PARSERS else {}
    if kind == AnyPath:
        kind = Any  # Typer takes no union; the parser makes the path
    if choices:  # `validate` checks the value, and names the most similar choice
        kind, settings = str, {"autocompletion": lambda: list(choices)}
    if field.metadata["argument"]:
        info = typer.Argument(metavar=flag(field), **settings)
    else:
        first, *others = spellings(field)
        negative = first.replace("--", "/--no-", 1) if kind is bool else ""
        info = typer.Option(first + negative, *others, help=_escape(field.metadata["help"]), **settings)
    kind = list[kind] if several else kind
    if is_required(field):
        return field.name, Annotated[kind, info]
    return field.name, Annotated[kind | None, info], None


def _help_flag(name: str, show: Callable[[bool], None]) -> _Declared:
    """Declare a flag that calls `show` (with True for all options) and exits."""

    def callback(ctx: typer.Context, given: bool) -> None:
        if given and not ctx.resilient_parsing:
            show(name == "--help-all")
            raise typer.Exit

    option = typer.Option(name, is_eager=True, expose_value=False, callback=callback)
    return name.strip("-").replace("-", "_"), Annotated[bool, option], False


def _escape(text: str) -> str:
    """Escape `[cpu]`, which Rich would read as a style when Typer prints completions."""
    return text.replace("[", "\\[")


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


_PARSERS: dict[Any, Callable[[str], Any]] = {int: _whole_number, float: _number, AnyPath: as_path}
