"""Reading a recipe: a TOML file with a table per stage, and `[run]` for what the stages share.

A key is a stage's option with underscores. What `[run]` sets (`task`, `threads`, `seed` …) holds for every stage that
has an option of that name, unless the stage's own table says otherwise. Tables apart, such as `[slurm]`, share nothing
with `[run]`; what one of them says holds for those within it, such as `[slurm.rollout]`, unless they say otherwise.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from stages.core.config import bare_type, field_types
from stages.core.errors import UserError, did_you_mean
from stages.core.paths import as_path

T = TypeVar("T", bound="Any")

Table = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """Tables of options by name, as read, with the overrides applied.

    Attributes:
      source: for messages.
      tables: one per stage, and the one whose options all stages share; a table within another by both names, `a.b`.
      shared_in: the name of the latter.
    """

    source: str
    tables: Mapping[str, Table]
    shared_in: str

    def config(self, name: str, cls: type[T], /, **given: Any) -> T:
        """The Config of a table: what it says, over what `[run]` or the table around it shares; the caller fixes some.

        Raises:
          UserError: an option that the stage does not have, that the caller decides, or of the wrong type or value.
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
            key: coerce(value, hints[key], f"{self.source}: [{name}] {key}")
            for key, value in {**shared, **table}.items()
            if key in hints and key not in given
        }
        required = [field.name for field in fields(cls) if field.default is MISSING]
        if absent := [key for key in required if key not in values and key not in given]:
            raise UserError(f"{self.source}: [{name}] lacks {', '.join(absent)}")
        try:
            return cls(**values, **given)
        except UserError as error:
            raise UserError(f"{self.source}: [{name}] {error}") from error


def read_recipe(
    path: Path, overrides: Sequence[str], stages: Mapping[str, type], shared_in: str, apart: Mapping[str, type] = {}
) -> Recipe:
    """A recipe with `table.key=value` overrides applied.

    Args:
      stages: table name → Config class, of all tables that a recipe may have.
      apart: further tables, with which `shared_in` shares nothing; a table within another is named `a.b`.

    Raises:
      UserError: no such file, not TOML, an unknown table, or an override of another form.
    """
    try:
        read: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"the recipe {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"the recipe {path} is not TOML: {error}") from error
    classes = {**stages, **apart}
    known = ", ".join(f"[{name}]" for name in classes if "." not in name)
    tables = dict[str, Table]()
    for name, table in read.items():
        if not isinstance(table, dict):
            raise UserError(f"the recipe {path} has {name}; expected the tables {known}")
        tables |= _flatten(name, table)
    for name in tables:
        if name not in classes:
            message = f"the recipe {path} has {name}; expected the tables {known}"
            raise UserError(_with_guesses(message, [name], classes))
    options = {key: hint for cls in stages.values() for key, hint in field_types(cls).items()}
    for override in overrides:
        target, equals, text = override.partition("=")
        name, dot, key = target.rpartition(".")
        key = key.replace("-", "_")
        if not (equals and dot and name in classes):
            message = f"an override is table.key=value with one of {known}; got {override!r}"
            raise UserError(_with_guesses(message, [name] * (name not in classes), classes))
        hints = options if name == shared_in else field_types(classes[name])
        tables.setdefault(name, {})[key] = _read_value(text, hints.get(key))
    if unknown := sorted(set(tables.get(shared_in, {})) - set(options)):
        message = f"the recipe {path} sets {', '.join(unknown)} in [{shared_in}], which no stage has"
        raise UserError(_with_guesses(message, unknown, options))
    for name, cls in apart.items():
        if unknown := sorted(set(tables.get(name, {})) - set(field_types(cls))):
            takes = ", ".join(field_types(cls))
            message = f"the recipe {path} sets {', '.join(unknown)} in [{name}], which takes {takes}"
            raise UserError(_with_guesses(message, unknown, field_types(cls)))
    return Recipe(str(path), tables, shared_in)


def _with_guesses(message: str, given: Iterable[str], known: Collection[str]) -> str:
    """Return an error message with the names that were probably meant."""
    guesses = "".join(did_you_mean(one, known) for one in given)
    return f"{message}.{guesses}" if guesses else message


def _flatten(name: str, table: Table) -> dict[str, Table]:
    """A table and those within it, each by its full name, with underscores in the keys."""
    within = {key: value for key, value in table.items() if isinstance(value, dict)}
    own = {key.replace("-", "_"): value for key, value in table.items() if key not in within}
    found = {name: own} if own or not within else {}
    for key, value in within.items():
        found |= _flatten(f"{name}.{key}", value)
    return found


def coerce(value: Any, hint: Any, where: str) -> Any:
    """A TOML value as the type of an option: lists become tuples, texts become paths, whole numbers floats or texts.

    Raises:
      UserError: a value of another type.
    """
    hint = bare_type(hint)
    if get_origin(hint) is Literal:
        return value  # `validate` names the choices
    if get_origin(hint) is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(coerce(item, get_args(hint)[0], where) for item in items)
    if hint is Path and isinstance(value, str | Path):
        return as_path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # rollouts = 9, where "4..32" is allowed too
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UserError(f"{where} must be of type {hint.__name__}; got {value!r}")
    return value


def _read_value(text: str, hint: Any) -> Any:
    """The value of an override: TOML where that is what the option takes, else the text as it stands."""
    if _types_in(hint) & {str, Path} and not text.startswith(("[", '"', "'")):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _types_in(hint: Any) -> set[Any]:
    """`tuple[str, ...] | None` → str and None among others; the choices of a Literal are no types."""
    if get_origin(hint) is Literal:
        return set()
    return {hint}.union(*map(_types_in, get_args(hint)))
