"""Dotted flags, the options of a stage on the command line of `spo run`: `--train.learning-rate 2e-4`."""

from __future__ import annotations

import re
from collections.abc import Sequence

import click

_DOTTED = re.compile(r"--([a-z.]+)\.([A-Za-z0-9_-]+)(?:=(.*))?", re.DOTALL)


def translate_dotted(args: Sequence[str]) -> list[str]:
    """Write `--train.learning-rate 2e-4` as `--set train.learning_rate=2e-4`; other arguments stay as they are.

    A flag of type bool takes no value: `--train.x` is true, `--train.no-x` is false. The recipe reader
    checks tables and keys.
    """
    rest, translated = list(args), []
    while rest:
        match = _DOTTED.fullmatch(rest[0])
        if not match:
            translated.append(rest.pop(0))
            continue
        written = rest.pop(0)
        table, key, value = match[1], match[2].replace("-", "_"), match[3]
        bools = _bool_keys(table)
        if value is None and key in bools:
            value = "true"
        elif value is None and key.removeprefix("no_") in bools:
            key, value = key.removeprefix("no_"), "false"
        elif value is None:
            if not rest or rest[0].startswith("--"):
                raise click.BadParameter("the flag takes a value", param_hint=written)
            value = rest.pop(0)
        translated += ["--set", f"{table}.{key}={value}"]
    return translated


def dotted_flags() -> list[str]:
    """Return every flag of a stage as `spo run` takes it, e.g. `--train.learning-rate`."""
    from stages.config import field_types
    from stages.planning import TABLES

    return [f"--{table}.{key.replace('_', '-')}" for table, config in TABLES.items() for key in field_types(config)]


def _bool_keys(table: str) -> set[str]:
    """Return the options of a recipe's table that take no value; [run] may hold those of every stage."""
    from stages.config import bare_type, field_types
    from stages.planning import SLURM_TABLES, TABLES

    apart = SLURM_TABLES.get(table)
    configs = [apart] if apart else [config for name, config in TABLES.items() if table in (name, "run")]
    types = [entry for config in configs for entry in field_types(config).items()]
    return {name for name, annotation in types if bare_type(annotation) is bool}
