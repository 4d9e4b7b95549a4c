"""Read JSON that may be torn, damaged or hostile: each failure is a one-line error that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from stages.core.errors import UserError, first_line
from stages.core.paths import AnyPath

T = TypeVar("T")


def parse_json(text: str | bytes, where: str) -> Any:
    """Return the value of a JSON text.

    Args:
      where: the source of the text, for the message.

    Raises:
      UserError: the text is not JSON, is not UTF-8, nests too deep, or has a number with too many digits.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise UserError(f"{where} is not JSON that can be read: its values nest too deep") from error
    except ValueError as error:
        raise UserError(f"{where} is not JSON ({first_line(error)})") from error


def read_json(path: AnyPath, kind: type[T] = dict[str, Any]) -> T:
    """Return the content of a JSON file, a value of type `kind`.

    Raises:
      UserError: the file cannot be read, is not JSON, or holds a value of another type.
    """
    content = parse_json(_read(path), str(path))
    bare = getattr(kind, "__origin__", kind)
    if not isinstance(content, bare):
        expected = {dict: "an object", list: "an array"}[bare]
        raise UserError(f"{path} cannot be read: it holds {_name(content)}; expected {expected}")
    return content


def read_json_lines(path: AnyPath) -> list[dict[str, Any]]:
    """Return the objects of a file with one JSON object per line.

    Raises:
      UserError: the file cannot be read, or a line is not a JSON object.
    """
    lines = [line for line in _read(path).split(b"\n") if line.strip()]
    objects = [parse_json(line, f"{path} line {number}") for number, line in enumerate(lines, start=1)]
    for number, found in enumerate(objects, start=1):
        if not isinstance(found, dict):
            raise UserError(f"{path} line {number} cannot be read: it holds {_name(found)}; expected an object")
    return objects


def decoded(make: Callable[[], T], where: str) -> T:
    """Return what `make` builds from parsed JSON.

    Raises:
      UserError: entries are missing, unknown or of another type, so that `make` fails.
    """
    try:
        return make()
    except (ValueError, TypeError, KeyError, AttributeError, LookupError) as error:
        raise UserError(f"{where} cannot be read: {type(error).__name__}: {first_line(error)}") from error


def _read(path: AnyPath) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or first_line(error)}") from error


def _name(value: Any) -> str:
    return {dict: "an object", list: "an array", str: "a text", type(None): "null"}.get(type(value), f"{value!r:.40}")
