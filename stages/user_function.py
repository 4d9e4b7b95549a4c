"""A user's own function, given as `package.module:function`; found on the Python path or in the current directory."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.errors import UserError


def load_function(name: str, flag: str) -> tuple[Callable[..., Any], str]:
    """The function, and a digest of the file that defines it (so that editing it changes the fingerprint).

    Raises:
      UserError: a name of another form, a module that cannot be imported, or one without that function.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise UserError(f"{flag}: a function of yours is given as package.module:function; got {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        raise UserError(f"{flag} {name}: cannot import {module_name} ({error}); is it installed, or here?") from error
    except AttributeError as error:
        raise UserError(f"{flag} {name}: the module {module_name} has no {attribute}") from error
    if not callable(function):
        raise UserError(f"{flag} {name}: {attribute} is a {type(function).__name__}, not a function")
    file = inspect.getsourcefile(inspect.unwrap(function)) or inspect.getsourcefile(
        importlib.import_module(module_name)
    )
    source = Path(file).read_bytes() if file else name.encode()
    return function, hashlib.blake2b(source, digest_size=16).hexdigest()
