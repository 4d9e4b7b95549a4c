"""Represent locations of data: `AnyPath` is a local path or an address in an object store (`s3://bucket/key`,
`gs://bucket/key`).

A signature names what a function takes: `AnyPath` where a store is accepted, `Path` where the file must be on this
machine (a lock, a memory map, a library that opens files by name), `StorePath` where it must be in a store.
"""

from __future__ import annotations

import os
import posixpath
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from stages.core.errors import UserError
from stages.core.store import SCHEMES, StorePath

AnyPath: TypeAlias = Path | StorePath
LOGS = "_logs"
"""Name of the directory for logs. `spo` takes no directory whose name starts with an underscore for an output."""
_MISSPELLED_SCHEMES = tuple(f"{scheme}:/" for scheme in SCHEMES)
"""Addresses that lack a slash. They are refused, because otherwise they would pass as local paths."""


def as_path(text: str | AnyPath) -> AnyPath:
    """Return the path for a text from the command line, a recipe or a lineage; a path is returned unchanged.

    Raises:
      UserError: the text is an address other than `s3://bucket/…` or `gs://bucket/…`.
    """
    if not isinstance(text, str):
        return text
    scheme, is_address, rest = text.partition("://")
    if not is_address and not text.startswith(_MISSPELLED_SCHEMES):
        return Path(text)
    if scheme not in SCHEMES or not rest or rest.startswith("/"):
        raise UserError(f"expected a local path, s3://BUCKET/KEY or gs://BUCKET/KEY; got {text.rpartition('@')[2]!r}")
    if "@" in rest.partition("/")[0] or "?" in rest:
        raise UserError(
            "an address of a store must not contain credentials or parameters, which would be written to every part: "
            "set them in the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS …)"
        )
    return StorePath.parse(text)


def relative_path(path: AnyPath, directory: AnyPath) -> str:
    """Return a reference from a directory to a path, for a lineage; `locate` resolves it.

    Returns:
      `path` relative to `directory`, with forward slashes. If the two have no common root (another bucket, or one in a
      store and one local), the absolute path.
    """
    path, directory = path.resolve(), directory.resolve()
    if isinstance(path, Path) and isinstance(directory, Path):
        return Path(os.path.relpath(path, directory)).as_posix()
    if isinstance(path, StorePath) and isinstance(directory, StorePath) and path.root == directory.root:
        return posixpath.relpath(path.key, directory.key)
    return str(path)


def locate(reference: str, directory: AnyPath) -> AnyPath:
    """Return the path that `relative_path` wrote as a reference from a directory, without `..` in it."""
    if "://" in reference or os.path.isabs(reference):
        return as_path(reference)
    if isinstance(directory, StorePath):
        return (directory / reference).resolve()
    return Path(os.path.normpath(directory.resolve() / reference))


def log_directory(output: AnyPath) -> AnyPath:
    """Return the directory for the logs of an output: `DIR/_logs/NAME` for `DIR/NAME`.

    It is beside the output because some readers of Parquet open every file below a directory.
    """
    here = output.resolve()
    return here.parent / LOGS / here.name


def cache_directory() -> Path:
    """Return the directory for local copies of objects and for files to upload: `SPO_CACHE`, else the user's cache."""
    if given := os.environ.get("SPO_CACHE"):
        directory = Path(given).expanduser().resolve()
    else:
        directory = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "spo"
    with suppress(OSError):  # whoever writes into it reports the error
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700)  # it holds copies of models that others may not read
    return directory


def is_path_reference(name: str) -> bool:
    """Return whether a model name from a lineage can only be a path, and not a name on the Hugging Face hub.

    The lineage of a model that has been moved or deleted still names its path, so the file system cannot decide.
    """
    return name.startswith("..") or "://" in name or os.path.isabs(name)
