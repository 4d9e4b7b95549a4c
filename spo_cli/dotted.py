"""Translate dotted flags, the options of a stage on the command line of `spo run`: `--train.learning-rate 2e-4`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import typer

from stages.configs.run import SEPARATE_TABLES, TABLES
from stages.core.config import bare_type, field_types
from stages.core.errors import UserError, did_you_mean

_DOTTED = re.compile(r"--([a-z.]+)\.([A-Za-z0-9_-]+)(?:=(.*))?", re.DOTALL)


def translate_dotted(args: Sequence[str]) -> list[str]:
    """Write `--train.learning-rate 2e-4` as `--set train.learning_rate=2e-4`; other arguments stay as they are.

    A flag of type bool takes no value: `--train.x` is true, `--train.no-x` is false. The recipe reader checks values.

    Raises:
      UserError: no such table, or no such option in it.
      typer.BadParameter: a flag without its value.
    """
    rest, translated = list(args), []
    while rest:
        match = _DOTTED.fullmatch(rest[0])
        if not match:
            translated.append(rest.pop(0))
            continue
        rest.pop(0)
        table, key, value = match[1], match[2].replace("-", "_"), match[3]
        name, kinds = f"--{table}.{match[2]}", _options(table)
        positive = key.removeprefix("no_")
        if key not in kinds and kinds.get(positive) is not bool:
            raise UserError(f"No such option {name!r}.{did_you_mean(name, dotted_flags())}")
        if value is None and key not in kinds:
            key, value = positive, "false"
        elif value is None and kinds[key] is bool:
            value = "true"
        elif value is None:
            if not rest or rest[0].startswith("--"):
                raise typer.BadParameter("the flag takes a value", param_hint=name)
            value = rest.pop(0)
        translated += ["--set", f"{table}.{key}={value}"]
    return translated


def dotted_flags() -> list[str]:
    """Return every flag of a stage as `spo run` takes it, e.g. `--train.learning-rate`."""
    return [f"--{table}.{key.replace('_', '-')}" for table in TABLES | SEPARATE_TABLES for key in _options(table)]


def _options(table: str) -> dict[str, Any]:
    """Return the options that a recipe's table takes, with their types; [run] may hold those of every stage."""
    taking = TABLES if table == "run" else [table]
    return {key: kind for name in taking for key, kind in _own_options(name).items()}


def _own_options(table: str) -> dict[str, Any]:
    config = (TABLES | SEPARATE_TABLES).get(table)
    return {key: bare_type(kind) for key, kind in field_types(config).items()} if config else {}
