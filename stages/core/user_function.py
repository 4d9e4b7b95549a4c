"""Import a function of the user, given as `package.module:function`, from the Python path or the current directory."""

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
    """Import a function of the user.

    Args:
      name: `package.module:function`.
      flag: the option that was given, for messages.

    Returns:
      The function, and a digest of the file that defines it, so that an edit changes the fingerprint. For a function
      without Python source, the digest of its name.

    Raises:
      UserError: the name has another form, the module cannot be imported, or it has no such function.
    """
    module_name, _, attribute = name.partition(":")
    if not (attribute.isidentifier() and all(part.isidentifier() for part in module_name.split("."))):
        raise UserError(f"{flag}: expected package.module:function; got {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"{flag} {name}: cannot import {module_name} ({error}); install it, or run the command in its directory"
        ) from error
    except (Exception, SystemExit) as error:  # the module of a user may raise anything, or call sys.exit
        raise UserError(f"{flag} {name}: importing {module_name} raised {type(error).__name__}: {error}") from error
    function = getattr(module, attribute, None)
    if function is None:
        raise UserError(f"{flag} {name}: the module {module_name} has no {attribute}")
    if not callable(function):
        raise UserError(f"{flag} {name}: {attribute} must be a function; found {type(function).__name__}")
    file = _source_file(function) or _source_file(module)
    source = Path(file).read_bytes() if file else name.encode()
    return function, digest(source)


def _source_file(thing: Callable[..., Any] | ModuleType) -> str | None:
    """Return the source file of a function or module; None if it was not written in Python."""
    try:
        return inspect.getsourcefile(inspect.unwrap(thing) if callable(thing) else thing)
    except TypeError:
        return None
