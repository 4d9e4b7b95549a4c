"""Model directories in an object store: a copy of one on this machine, one from here put there whole or not at all.

A directory in a store counts as a model once its configuration is in it, which is put there last and removed first; its
lineage goes first, so that what a kill cuts short can be told from what is not ours.
Copies lie in `places.cache()`, each under a digest of its address and of what the store lists there (names, sizes,
times), so a model that was written anew is another copy; files are fetched when they are asked for. What is no longer
needed there may be deleted.
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
from stages.core.paths import StorePath, as_path, cache_directory, download, is_local, upload
from stages.core.storage import digest, write_atomically
from stages.models.adapters import CONFIG_FILE

CONFIGURATIONS = ("config.json", CONFIG_FILE)
"""Of a model, and of an adapter."""
_LINEAGE_FILE = "spo.json"
_ORIGIN_FILE = ".origin"
_AT_ONCE = 4  # files; each is moved in several pieces at once where it is large


def fetch(directory: StorePath, unwanted: Iterable[str] = ()) -> Path:
    """The copy on this machine of a model directory in a store, fetched as far as it is not here.

    Args:
      unwanted: patterns of names that may stay away. Directories within it do.

    Raises:
      UserError: no model is there, or not yet; it cannot be reached; it was written anew meanwhile.
    """
    listed = _listed(directory)
    if not any(name in listed for name in CONFIGURATIONS):
        raise UserError(
            f"there is no model directory {directory}"
            + (", only one whose writing did not come to its end" if listed else "")
        )
    copy = _copy(directory, listed)
    with _held(copy):
        write_atomically(copy / _ORIGIN_FILE, f"{directory}\n".encode())
        absent = [name for name in listed if not (copy / name).exists() and "/" not in name]
        _each(lambda name: _fetch(directory / name, copy / name), [n for n in absent if not _like(n, unwanted)])
        if _listed(directory) != listed:
            raise UserError(f"{directory} was written anew while it was read: run the same command again")
    return copy


def publish(finished: Path, directory: StorePath) -> None:
    """Puts a model directory into a store, in the place of what was there, and keeps it as the copy on this machine.

    Raises:
      UserError: the store does not take it; then there is no model, and `finished` is still here.
    """
    names = sorted(path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file())
    there, ends = set(_listed(directory)), {_LINEAGE_FILE, *CONFIGURATIONS}

    def put(some: Iterable[str]) -> None:
        _each(lambda name: _upload(finished / name, directory / name), [name for name in some if name in names])

    for name in there & set(CONFIGURATIONS):
        (directory / name).unlink()
    put([_LINEAGE_FILE])
    put(name for name in names if name not in ends)
    for name in there - set(names) - ends:
        (directory / name).unlink()
    put(CONFIGURATIONS)
    copy = _copy(directory, _listed(directory))
    with _held(copy):
        for name in names:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(finished / name, copy / name)
        write_atomically(copy / _ORIGIN_FILE, f"{directory}\n".encode())
    shutil.rmtree(finished)


def is_whole(directory: Path) -> bool:
    """Whether a model directory came to its end; one on a disk is there by a rename, and so it did."""
    return is_local(directory) or any((directory / name).is_file() for name in CONFIGURATIONS)


def building(directory: Path) -> Path:
    """Where a model directory grows: beside its place, or on this machine where that is in a store."""
    if is_local(directory):
        return directory.with_name(f".{directory.name}.unfinished")
    return cache_directory() / "building" / digest(str(directory.resolve()).encode()) / directory.name


def origin(directory: Path) -> Path:
    """Where a model directory is a copy from; one that is none, itself."""
    told = directory / _ORIGIN_FILE
    return as_path(told.read_text().strip()) if told.is_file() else directory


def _listed(directory: StorePath) -> dict[str, tuple[int, int]]:
    """Size and time of every file below a directory, by its relative path."""
    return {path.relative_to(directory).as_posix(): (info.size, info.mtime_ns) for path, info in directory.walk_files()}


def _copy(directory: StorePath, listed: dict[str, tuple[int, int]]) -> Path:
    """The address is in it: a store tells times in seconds, and models of one architecture have files of one size."""
    return (
        cache_directory() / "models" / digest(json.dumps([str(directory.resolve()), sorted(listed.items())]).encode())
    )


def _fetch(source: StorePath, target: Path) -> None:
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        download(source, beside)
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def _upload(source: Path, target: Path) -> None:
    with source.open("rb") as file:
        upload(file, target)


def _each(do: Callable[[str], None], names: list[str]) -> None:
    """Does it for all, some at once; where one fails, or a signal comes, those not begun are left."""
    pool = ThreadPoolExecutor(max_workers=_AT_ONCE)
    try:
        for _ in pool.map(do, names):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def _like(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


@contextmanager
def _held(copy: Path) -> Iterator[None]:
    """One process at a time fetches a model; the others wait, and find it."""
    try:
        copy.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"no copy of a model can be kept in {copy}: {error.strerror}; set SPO_CACHE to a place that can"
        ) from error
    with copy.with_name(f".{copy.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
