"""A user's own function, given as `package.module:function`; found on the Python path or in the current directory."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from stages.core.errors import UserError
from stages.core.storage import digest


def load_function(name: str, flag: str) -> tuple[Callable[..., Any], str]:
    """The function, and a digest of the file that defines it (so that editing it changes the fingerprint).

    Raises:
      UserError: a name of another form, a module that cannot be imported, or one without that function.
    """
    module_name, _, attribute = name.partition(":")
    if not (attribute.isidentifier() and all(part.isidentifier() for part in module_name.split("."))):
        raise UserError(f"{flag}: a function of yours is given as package.module:function; got {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"{flag} {name}: cannot import {module_name} ({error}); is it installed, or here?") from error
    except Exception as error:  # code that is not ours may raise anything
        raise UserError(f"{flag} {name}: {module_name} fails when imported: {type(error).__name__}: {error}") from error
    function = getattr(module, attribute, None)
    if function is None:
        raise UserError(f"{flag} {name}: the module {module_name} has no {attribute}")
    if not callable(function):
        raise UserError(f"{flag} {name}: {attribute} is a {type(function).__name__}, not a function")
    file = _source_file(function) or _source_file(module)
    source = Path(file).read_bytes() if file else name.encode()
    return function, digest(source)


def _source_file(thing: Callable[..., Any] | ModuleType) -> str | None:
    """Where something is written down; None for what is not made of Python source."""
    try:
        return inspect.getsourcefile(inspect.unwrap(thing) if callable(thing) else thing)
    except TypeError:
        return None
