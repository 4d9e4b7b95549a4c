"""Read a recipe: a TOML file with one table per stage, and `[run]` with options that the stages share.

A key is an option of the stage with underscores. A value in `[run]` (`task`, `threads`, `seed` …) applies to every
stage with an option of that name, unless the stage's own table sets it. Separate tables, such as `[slurm]`, do not
inherit from `[run]`; a nested table, such as `[slurm.rollout]`, inherits from the table around it.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from stages.core.config import bare_type, field_types, unread_options
from stages.core.errors import UserError, did_you_mean
from stages.core.paths import AnyPath, as_path

T = TypeVar("T", bound="Any")

Table = dict[str, Any]
_LARGEST_FLOAT = 10**308
_DEEPEST = 8  # tables inside tables; recipes have two levels


@dataclass(frozen=True)
class Recipe:
    """The tables of a recipe, with the overrides applied.

    Attributes:
      source: path of the recipe, for messages.
      tables: name → options; a nested table is named `a.b`.
      shared_in: name of the table whose options all stages share.
    """

    source: str
    tables: Mapping[str, Table]
    shared_in: str

    def config(self, name: str, cls: type[T], /, **given: Any) -> T:
        """Return the Config of a table: its own options, and those that it inherits.

        Args:
          name: name of the table.
          cls: Config class of the table.
          given: options that the caller decides; the table must not set them.

        Raises:
          UserError: an unknown option, one that the caller decides, or one of the wrong type or value.
        """
        table, hints = self.tables.get(name, {}), field_types(cls)
        if fixed := sorted(set(table) & set(given)):
            raise UserError(f"{self.source}: [{name}] must not set {', '.join(fixed)}: `spo run` decides it")
        if name != self.shared_in and (unknown := sorted(set(table) - set(hints))):
            message = f"{self.source}: [{name}] has no option {', '.join(unknown)}; `spo {name} --help-all` lists them"
            raise UserError(_with_guesses(message, unknown, hints))
        around = name.rpartition(".")[0] or self.shared_in
        shared = {key: value for key, value in self.tables.get(around, {}).items() if key in hints}
        values = {
            key: coerce(value, hints[key], f"{self.source}: [{name if key in table else around}] {key}")
            for key, value in {**shared, **table}.items()
            if key in hints and key not in given
        }
        required = [field.name for field in fields(cls) if field.default is MISSING]
        if absent := [key for key in required if key not in values and key not in given]:
            raise UserError(f"{self.source}: [{name}] lacks {', '.join(absent)}")
        try:
            config = cls(**values, **given)
            unread = unread_options(config)
            if surplus := [key for key in sorted(set(table) & set(unread)) if values[key] != getattr(cls, key)]:
                raise UserError(f"{surplus[0]} is an option of {unread[surplus[0]]}: omit it")
            # What the stage does not read is left at its default: [run] sets it for other stages.
            return replace(config, **{field.name: field.default for field in fields(cls) if field.name in unread})
        except UserError as error:
            first = str(error).partition(" ")[0].removeprefix("--").replace("-", "_")
            raise UserError(f"{self.source}: [{around if first in {*shared} - {*table} else name}] {error}") from error


def read_recipe(
    path: AnyPath,
    overrides: Sequence[str],
    stages: Mapping[str, type],
    shared_in: str,
    separate: Mapping[str, type] = {},
    unset: Sequence[str] = (),
) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
      path: TOML file.
      overrides: texts `table.key=value`.
      stages: name of a table → its Config class.
      shared_in: name of the table whose options all stages share.
      separate: further tables, which do not inherit from `shared_in`; a nested table is named `a.b`.
      unset: names of tables, and keys as `table.key`, to leave out of the recipe.

    Raises:
      UserError: no such file, not TOML, an unknown table, or an override of another form.
    """
    classes = {**stages, **separate}
    tables = _unset(_read_tables(path, classes), unset, path)
    options = {key: hint for cls in stages.values() for key, hint in field_types(cls).items()}
    for override in overrides:
        _override(tables, override, classes, shared_in, options)
    if unknown := sorted(set(tables.get(shared_in, {})) - set(options)):
        message = f"the recipe {path} sets {', '.join(unknown)} in [{shared_in}], which no stage has"
        raise UserError(_with_guesses(message, unknown, options))
    for name, cls in separate.items():
        if unknown := sorted(set(tables.get(name, {})) - set(field_types(cls))):
            takes = ", ".join(field_types(cls))
            message = f"the recipe {path} sets {', '.join(unknown)} in [{name}], which takes {takes}"
            raise UserError(_with_guesses(message, unknown, field_types(cls)))
    return Recipe(str(path), tables, shared_in)


def _read_tables(path: AnyPath, classes: Mapping[str, type]) -> dict[str, Table]:
    """Return the tables of a recipe by name; each must be one of `classes`."""
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"the recipe {path} cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise UserError(f"the recipe {path} cannot be read: its tables nest too deep") from error
    except ValueError as error:
        raise UserError(f"the recipe {path} is not TOML: {error}") from error
    tables = dict[str, Table]()
    for name, table in content.items():
        if not isinstance(table, dict):
            raise UserError(f"the recipe {path} has {name}; expected the tables {_brackets(classes)}")
        tables |= _flatten(name, table, path)
    for name in tables:
        if name not in classes:
            message = f"the recipe {path} has {name}; expected the tables {_brackets(classes)}"
            raise UserError(_with_guesses(message, [name], classes))
    return tables


def _unset(tables: dict[str, Table], unset: Sequence[str], path: AnyPath) -> dict[str, Table]:
    """Return the tables without those named, and without the keys named as `table.key`."""
    tables = dict(tables)
    for place in unset:
        name, _, key = place.rpartition(".")
        if place in tables:
            del tables[place]
        elif key.replace("-", "_") in tables.get(name, {}):
            tables[name] = {one: value for one, value in tables[name].items() if one != key.replace("-", "_")}
        else:
            known = [*tables, *(f"{name}.{key}" for name, table in tables.items() for key in table)]
            raise UserError(_with_guesses(f"the recipe {path} has no {place} to unset", [place], known))
    return tables


def _override(
    tables: dict[str, Table], override: str, classes: Mapping[str, type], shared_in: str, shared: Mapping[str, Any]
) -> None:
    """Set one value of `tables` by a text `table.key=value`.

    Args:
      shared: types of the options that the table `shared_in` takes.
    """
    target, equals, text = override.partition("=")
    name, dot, key = target.rpartition(".")
    key = key.replace("-", "_")
    if not (equals and dot and name in classes):
        message = f"an override is table.key=value with one of {_brackets(classes)}; got {override!r}"
        raise UserError(_with_guesses(message, [name] * (name not in classes), classes))
    hints = shared if name == shared_in else field_types(classes[name])
    tables.setdefault(name, {})[key] = _read_value(text, hints.get(key))


def _brackets(classes: Mapping[str, type]) -> str:
    """Return the names of the tables as a recipe spells them: `[run], [sft]`."""
    return ", ".join(f"[{name}]" for name in classes if "." not in name)


def _with_guesses(message: str, given: Iterable[str], known: Collection[str]) -> str:
    """Return an error message with the most similar known names."""
    guesses = "".join(did_you_mean(one, known) for one in given)
    return f"{message}.{guesses}" if guesses else message


def _flatten(name: str, table: Table, path: AnyPath) -> dict[str, Table]:
    """Return a table and the tables nested in it, each under its full name, with underscores in the keys."""
    if name.count(".") > _DEEPEST:
        raise UserError(f"the recipe {path} has the table [{name}]: tables nest too deep")
    nested = {key: value for key, value in table.items() if isinstance(value, dict)}
    own = {key.replace("-", "_"): value for key, value in table.items() if key not in nested}
    found = {name: own} if own or not nested else {}
    for key, value in nested.items():
        found |= _flatten(f"{name}.{key}", value, path)
    return found


def coerce(value: Any, hint: Any, where: str) -> Any:
    """Return a TOML value as the type of an option: a list as a tuple, a text as a path, an integer as a float or text.

    Args:
      where: the option, for messages.

    Raises:
      UserError: a value of another type.
    """
    hint = bare_type(hint)
    if get_origin(hint) is Literal:
        return value  # `validate` names the choices
    if get_origin(hint) is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(coerce(item, get_args(hint)[0], where) for item in items)
    if hint == AnyPath and isinstance(value, str | AnyPath):
        return as_path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < _LARGEST_FLOAT else math.inf  # `validate` refuses infinity
    if hint is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # rollouts = 9, where "4..32" is allowed too
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        expected = "Path" if hint == AnyPath else hint.__name__
        raise UserError(f"{where} must be of type {expected}; got {value!r}")
    return value


def _read_value(text: str, hint: Any) -> Any:
    """Return the value of an override: parsed as TOML, or the text itself if the option takes text or is not TOML."""
    if _types_in(hint) & {str, Path} and not text.startswith(("[", '"', "'")):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # no TOML, a number of too many digits, values that nest too deep
        return text


def _types_in(hint: Any) -> set[Any]:
    """Return all types in an annotation: `tuple[str, ...] | None` contains str and None. A Literal contains none."""
    if get_origin(hint) is Literal:
        return set()
    return {hint}.union(*map(_types_in, get_args(hint)))
