"""Copy model directories between object stores and this machine; an upload appears completely or not at all.

A directory in a store counts as a model once it holds its configuration, which is uploaded last and deleted first. Its
lineage is uploaded first, so that an interrupted upload can be recognized as output of `spo`.

Copies are in `core.paths.cache_directory()`, each under a digest of the address and of the store's listing (names,
sizes, times): a model that was rewritten gets another copy. Files are fetched on demand. Copies that no command uses
may be deleted.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from stages.core.errors import UserError
from stages.core.paths import AnyPath, as_path, cache_directory
from stages.core.storage import digest, replacing, write_atomically
from stages.core.store import StorePath, download, upload
from stages.models.adapters import CONFIG_FILE

CONFIGURATIONS = ("config.json", CONFIG_FILE)
"""The configuration of a model, and of an adapter."""
_LINEAGE_FILE = "spo.json"
_ORIGIN_FILE = ".origin"
_CONCURRENT_FILES = 4  # few, because a large file is itself transferred in several concurrent requests


def fetch(directory: StorePath, unwanted: Iterable[str] = ()) -> Path:
    """Return the local copy of a model directory in a store, after fetching missing files.

    Args:
      unwanted: patterns of file names to skip. Subdirectories are always skipped.

    Raises:
      UserError: there is no complete model; the store is unreachable; the model was rewritten during the transfer.
    """
    listed = _list_files(directory)
    if not any(name in listed for name in CONFIGURATIONS):
        raise UserError(
            f"there is no model directory {directory}"
            + (", only an incomplete one, whose writing was interrupted or still runs" if listed else "")
        )
    copy = _copy_directory(directory, listed)
    with _locked(copy):
        write_atomically(copy / _ORIGIN_FILE, f"{directory}\n".encode())
        absent = [name for name in listed if not (copy / name).exists() and "/" not in name]
        _for_each(lambda name: _fetch(directory / name, copy / name), [n for n in absent if not _matches(n, unwanted)])
        if _list_files(directory) != listed:
            raise UserError(f"{directory} was rewritten during the download: rerun the command")
    return copy


def publish(finished: Path, directory: StorePath) -> None:
    """Upload a model directory to a store, replacing the one there, and keep it as the local copy.

    Raises:
      UserError: the upload failed; then the store holds no model there, and `finished` is unchanged.
    """
    names = sorted(path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file())
    existing, ordered = set(_list_files(directory)), {_LINEAGE_FILE, *CONFIGURATIONS}

    def put(some: Iterable[str]) -> None:
        _for_each(lambda name: _upload(finished / name, directory / name), [name for name in some if name in names])

    for name in existing & set(CONFIGURATIONS):  # first: without its configuration, the old model is no longer one
        (directory / name).unlink()
    put([_LINEAGE_FILE])
    put(name for name in names if name not in ordered)
    for name in existing - set(names) - ordered:
        (directory / name).unlink()
    put(CONFIGURATIONS)
    copy = _copy_directory(directory, _list_files(directory))
    with _locked(copy):
        for name in names:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(finished / name, copy / name)
        write_atomically(copy / _ORIGIN_FILE, f"{directory}\n".encode())
    shutil.rmtree(finished)


def is_whole(directory: AnyPath) -> bool:
    """Return whether a model directory is complete; on a disk it always is, because it appears by a rename."""
    return isinstance(directory, Path) or any((directory / name).is_file() for name in CONFIGURATIONS)


def building(directory: AnyPath) -> Path:
    """Return the directory to build a model directory in: next to it, or in the cache if it is in a store."""
    if isinstance(directory, Path):
        return directory.with_name(f".{directory.name}.unfinished")
    return cache_directory() / "building" / digest(str(directory.resolve()).encode()) / directory.name


def origin(directory: Path) -> AnyPath:
    """Return the address in a store that a local copy was fetched from; any other directory unchanged."""
    file = directory / _ORIGIN_FILE
    return as_path(file.read_text().strip()) if file.is_file() else directory


def _list_files(directory: StorePath) -> dict[str, tuple[int, int]]:
    """Return size and modification time of every file below a directory, by relative path."""
    return {path.relative_to(directory).as_posix(): (info.size, info.mtime_ns) for path, info in directory.walk_files()}


def _copy_directory(directory: StorePath, listed: dict[str, tuple[int, int]]) -> Path:
    """Return the directory of the local copy.

    The listing alone does not identify a model: stores give times in seconds, and models of one architecture have files
    of equal sizes. So the address enters the digest, too.
    """
    return (
        cache_directory() / "models" / digest(json.dumps([str(directory.resolve()), sorted(listed.items())]).encode())
    )


def _fetch(source: StorePath, target: Path) -> None:
    with replacing(target) as file:
        download(source, file)


def _upload(source: Path, target: StorePath) -> None:
    with source.open("rb") as file:
        upload(file, target)


def _for_each(do: Callable[[str], None], names: list[str]) -> None:
    """Call `do` for all names, some concurrently; after a failure or a signal, no further call is started."""
    pool = ThreadPoolExecutor(max_workers=_CONCURRENT_FILES)
    try:
        for _ in pool.map(do, names):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


@contextmanager
def _locked(copy: Path) -> Iterator[None]:
    """Lock a copy: one process at a time fetches a model; the others wait, and then find it."""
    try:
        copy.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot keep a copy of a model in {copy}: {error.strerror}; set SPO_CACHE to a writable directory"
        ) from error
    with copy.with_name(f".{copy.name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
