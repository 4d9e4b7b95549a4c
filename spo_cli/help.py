"""Lay out `--help`: options by purpose, required ones first, every flag whole, text wrapped to the terminal.

A short flag has its text beside it; a longer one stands on a line of its own, above its text:

    Sampling:
      --temperature X         Sampling temperature. (default: 1)
      --unfinished-reward X   Reward of a response that reaches --max-tokens
                              without ending. (default: 0)

`--help` shows the common options, `--help-all` shows all of them. Nothing here imports a stage.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args, get_origin

from rich.text import Text

from spo_cli.console import stdout
from stages.core.config import declaring_classes, field_types, flag, group_of, is_required, item_type, spellings
from stages.core.paths import AnyPath

REQUIRED, HELP = "Required", "Help and debugging"
GROUPS = (
    REQUIRED,
    "Input",
    "Prompt",
    "Recipe",
    "Assumptions",
    "View",
    "Segments",
    "Values",
    "Monte Carlo",
    "Tokens and segments",
    "Loss",
    "Optimization",
    "Critic",
    "LoRA",
    "Sampling",
    "Submission",
    "Engine",
    "Executor",
    "vLLM",
    "DeepSpeed",
    "Output",
    "Shards",
    "Options",
    HELP,
)
"""The headings in the order of the help; `Required` collects the options without a default, whatever their group."""

_WIDEST, _NARROWEST = 100, 40  # limits of the width in columns, for any terminal
_COLUMN = 28  # column where the text beside a flag begins
_STACKED = 70  # on narrower terminals, all text is below the flags
_INLINE_CHOICES = 56  # a longer flag lists its choices in its text
_METAVARS: dict[Any, str] = {int: "N", float: "X", AnyPath: "PATH", str: "NAME", bool: ""}


@dataclass(frozen=True)
class Entry:
    """One row of a help screen.

    Attributes:
      head: the flag with its spellings and its value, or a command.
      group: heading that the row is below.
      text: its effect, with its default.
      common: whether `--help` shows it.
      switch: whether it has a `--no-` form.
    """

    group: str
    head: str
    text: str
    common: bool = True
    switch: bool = False


_HELP_ENTRIES = (
    Entry(HELP, "--debug", "Print the traceback of an error. (default: off)", common=False),
    Entry(HELP, "--help", "Show the common options and exit.", common=False),
    Entry(HELP, "--help-all", "Show every option and exit.", common=False),
)


def entries(config: type) -> list[Entry]:
    """Return the rows of a command: the required options, the others by group, and those that every command has."""
    types = field_types(config)
    fields = sorted(dataclasses.fields(config), key=partial(_rank, config))
    return [*(_entry(config, field, types[field.name]) for field in fields), *_HELP_ENTRIES]


def _rank(config: type, field: dataclasses.Field[Any]) -> tuple[Any, ...]:
    """Return the place of a field: arguments, required ones, groups, in these the common ones and the command's own."""
    return (
        not field.metadata["argument"],
        not is_required(field),
        GROUPS.index(group_of(config, field)),
        not field.metadata["common"],
        config.__mro__.index(declaring_classes(config, field)[0]),
    )


def show_command(
    name: str, summary: str, config: type, *, everything: bool, note: str | None, examples: Sequence[str]
) -> None:
    """Print the help of a command on stdout.

    Args:
      name: what follows `spo` on the command line.
      everything: whether all options are shown, or the required and common ones.
      note: a paragraph below the options.
    """
    rows = entries(config)
    hidden = [] if everything else [row for row in rows if not row.common]
    if all(row.group == HELP for row in hidden):
        hidden = []  # only options that every command has
    shown = [row for row in rows if row not in hidden]
    notes = [note] if note else []
    if hidden:
        notes.append(f"{len(hidden)} more options: spo {name} --help-all")
    elif any(row.switch for row in rows):
        notes.append("An option that is on or off is turned off by --no-OPTION.")
    usage = f"spo {name.partition(' ')[0]} {' '.join([*_usage(config), '[OPTIONS]'])}"
    _print(usage, summary, shown, examples, notes)


def show_application(summary: str, rows: Sequence[Entry], examples: Sequence[str], note: str) -> None:
    """Print the help of `spo` itself on stdout."""
    _print("spo COMMAND [OPTIONS]", summary, rows, examples, [note], column=None)


def default_in_words(field: dataclasses.Field[Any]) -> str:
    """Return the default of an optional field as the help states it: `1024`, `off`, `the model's own`."""
    text = field.metadata["default_text"]
    return _in_words(field.default) if text is None else text


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(_in_words, value)) or "none"
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value)


def _entry(config: type, field: dataclasses.Field[Any], annotation: Any) -> Entry:
    kind, repeatable = item_type(annotation)
    required, text = is_required(field), field.metadata["help"]
    head = _head(field, kind, repeatable)
    if get_origin(kind) is Literal:
        with_choices = head.replace("NAME", f"{{{'|'.join(get_args(kind))}}}", 1)
        if len(with_choices) <= _INLINE_CHOICES:
            head = with_choices
        elif not all(choice in text for choice in get_args(kind)):
            text = f"{text} One of {', '.join(get_args(kind))}."
    notes = ["repeatable"] * (repeatable and not field.metadata["argument"])
    notes += [] if required else [f"default:\N{NO-BREAK SPACE}{default_in_words(field)}"]
    return Entry(
        REQUIRED if required else group_of(config, field),
        head,
        f"{text} ({'; '.join(notes)})" if notes else text,
        common=required or field.metadata["common"],
        switch=kind is bool,
    )


def _head(field: dataclasses.Field[Any], kind: Any, repeatable: bool) -> str:
    more = "..." if repeatable else ""
    if field.metadata["argument"]:
        return flag(field) + more
    names = sorted(spellings(field), key=lambda name: name.startswith("--"))  # -m, --model
    if kind is bool and field.default is not False:
        names.append(flag(field).replace("--", "--no-", 1))
    return f"{', '.join(names)} {_metavar(field, kind)}{more}".rstrip()


def _metavar(field: dataclasses.Field[Any], kind: Any) -> str:
    return field.metadata["metavar"] or _METAVARS.get(kind, "NAME")


def _usage(config: type) -> Iterator[str]:
    """Yield the required options and all arguments, arguments first."""
    types = field_types(config)
    for field in sorted(dataclasses.fields(config), key=partial(_rank, config)):
        kind, repeatable = item_type(types[field.name])
        word = flag(field) if field.metadata["argument"] else f"{flag(field)} {_metavar(field, kind)}"
        word += "..." if repeatable else ""
        if is_required(field):
            yield word
        elif field.metadata["argument"]:
            yield f"[{word}]"


def _print(
    usage: str,
    summary: str,
    rows: Sequence[Entry],
    examples: Sequence[str],
    notes: Sequence[str],
    *,
    column: int | None = _COLUMN,
) -> None:
    """Print a screen.

    Args:
      column: where the text begins; None: beside the longest head of each group. On a narrow terminal it stands
        below the heads.
    """
    console = stdout()
    width = max(_NARROWEST, min(console.width, _WIDEST))
    first, *more = _wrap(usage, width - 7)
    screen = [Text.assemble(("Usage: ", "bold"), first), *(Text(" " * 11 + line) for line in more), Text()]
    screen += [Text(line) for line in _wrap(summary, width)]
    for group in dict.fromkeys(row.group for row in rows):
        of_group = [row for row in rows if row.group == group]
        begin = column or 4 + max(len(row.head) for row in of_group)
        screen += [Text(), Text(f"{group}:", "bold"), *_rows(of_group, width, begin if width >= _STACKED else 6)]
    if examples:
        lines = [line for example in examples for line in example.splitlines()]
        screen += [Text(), Text("Examples:", "bold"), *(Text(f"  {line}") for line in lines)]
    for note in notes:
        screen += [Text(), *map(Text, _wrap(note, width))]
    console.print(Text("\n").join(screen), soft_wrap=True)


def _rows(rows: Iterable[Entry], width: int, column: int) -> Iterator[Text]:
    """Yield the lines of one group, with the text in a column that begins at `column`."""
    for row in rows:
        text = _wrap(row.text, width - column)
        head = Text.assemble("  ", (row.head, "cyan"))
        if len(head) <= column - 2:
            head.append(" " * (column - len(head)) + text.pop(0))
        yield head
        yield from (Text(" " * column + line) for line in text)


def _wrap(text: str, width: int) -> list[str]:
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]
