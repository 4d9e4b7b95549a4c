"""Where files lie: on a disk, or in an object store (`s3://bucket/key`, `gs://bucket/key`), as one kind of path.

A `StorePath` answers to what the stages ask of a `Path`; what it does not answer to fails at once, because it has no
name on this machine. Stores are reached through pyarrow's own file systems, which read endpoint, region and credentials
where every tool of the store does (`AWS_ENDPOINT_URL`, `AWS_PROFILE`, `~/.aws`, `GOOGLE_APPLICATION_CREDENTIALS` …).

An object appears whole or not at all: its bytes are handed over in one piece, by a thread that no signal interrupts,
and an upload that a kill cuts short is never seen. There are no directories: one is there while something lies in it.
"""

from __future__ import annotations

import io
import mmap
import os
import posixpath
import stat
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PosixPath
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from stages.core.errors import StoreUnreachable, UserError

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

_SCHEMES = ("s3", "gs")
_SLIPS = ("s3:/", "gs:/")
"""No directory is called so: a slash was left out."""
_OPTIONS = {"s3:": "allow_delayed_open=true", "gs:": "retry_limit_seconds=60"}
"""A small object is one request when its stream is closed, rather than an upload in several parts; a store that does
not answer is not waited for a quarter of an hour."""
_FAILURES = ("AWS Error", "google::cloud", "Couldn't resolve host", "curlCode")
"""What pyarrow's messages hold where the store, not the file, is at fault."""


def as_path(text: str | Path) -> Path:
    """What a user or a lineage wrote, as a path.

    Raises:
      UserError: an address of another kind than `s3://bucket/…` or `gs://bucket/…`.
    """
    if isinstance(text, Path):
        return text
    scheme, is_address, rest = text.partition("://")
    if not is_address and not text.startswith(_SLIPS):
        return Path(text)
    if scheme not in _SCHEMES or not rest or rest.startswith("/"):
        raise UserError(f"expected a local path, s3://BUCKET/KEY or gs://BUCKET/KEY; got {text!r}")
    return StorePath(f"{scheme}:/{rest}")


def is_local(path: Path) -> bool:
    """Whether a path is one of this machine's file systems."""
    return not isinstance(path, StorePath)


def relative_path(path: Path, directory: Path) -> str:
    """`path` as seen from `directory`, with forward slashes; as it is, where one is in a store and the other is not."""
    path, directory = path.resolve(), directory.resolve()
    if isinstance(path, StorePath) and isinstance(directory, StorePath) and path.parts[:2] == directory.parts[:2]:
        return posixpath.relpath(path.key, directory.key)
    if isinstance(path, StorePath) or isinstance(directory, StorePath):
        return str(path)
    return Path(os.path.relpath(path, directory)).as_posix()


def locate(told: str, directory: Path) -> Path:
    """The path that `relative_path` told, without the `..` that no user typed."""
    if "://" in told or os.path.isabs(told):
        return as_path(told)
    if isinstance(directory, StorePath):
        return (directory / told).resolve()
    return Path(os.path.normpath(directory.resolve() / told))


def cache_directory() -> Path:
    """Where copies of what lies in stores are, and what is on its way there: `SPO_CACHE`, else the user's cache."""
    if given := os.environ.get("SPO_CACHE"):
        return Path(given).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "spo"


def is_path_reference(told: str) -> bool:
    """Whether a text that `relative_path` may have told cannot be a name on the hub, though nothing lies there."""
    return told.startswith("..") or "://" in told or os.path.isabs(told)


class StorePath(PosixPath):
    """A path in an object store; its first part is the scheme, its second the bucket."""

    __slots__ = ()

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    def __fspath__(self) -> str:
        raise TypeError(f"{self} lies in an object store: it has no name on this machine")

    @property
    def key(self) -> str:
        """As pyarrow's file system has it: `bucket/key`."""
        return posixpath.normpath("/".join(self.parts[1:]))

    @property
    def filesystem(self) -> FileSystem:
        """pyarrow's file system that holds it.

        Raises:
          UserError: it cannot be reached.
        """
        with store_errors(self):
            return _filesystem(self.parts[0], self.parts[1])

    def resolve(self, strict: bool = False) -> StorePath:
        return StorePath(self.parts[0], *self.key.split("/"))

    def absolute(self) -> StorePath:
        return self

    def expanduser(self) -> StorePath:
        return self

    def exists(self, **_: Any) -> bool:
        return self._info().type.name != "NotFound"

    def is_file(self, **_: Any) -> bool:
        return self._info().type.name == "File"

    def is_dir(self, **_: Any) -> bool:
        return self._info().type.name == "Directory"

    def stat(self, **_: Any) -> os.stat_result:
        found = self._info()
        if found.type.name == "NotFound":
            raise FileNotFoundError(f"{self} does not exist")
        mode, time = stat.S_IFREG if found.type.name == "File" else stat.S_IFDIR, found.mtime_ns or 0
        times = (time // 10**9,) * 3
        return os.stat_result((mode, 0, 0, 0, 0, 0, found.size or 0, *times), {"st_mtime_ns": time})

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Nothing to do."""

    def unlink(self, missing_ok: bool = False) -> None:
        with store_errors(self), suppress(*[FileNotFoundError] * missing_ok):
            self.filesystem.delete_file(self.key)

    def iterdir(self) -> Generator[StorePath, None, None]:
        return (path for path, _ in self.entries())

    def entries(self) -> list[tuple[StorePath, FileInfo]]:
        """What lies in a directory, in the order of the names; by one request (per thousand)."""
        from pyarrow.fs import FileSelector

        with store_errors(self):
            found = self.filesystem.get_file_info(FileSelector(self.key, allow_not_found=True))
        named = sorted((info for info in found if info.base_name), key=lambda info: info.base_name)
        return [(self / info.base_name, info) for info in named]

    def walk_files(self) -> list[tuple[StorePath, FileInfo]]:
        """Every object below a directory."""
        from pyarrow.fs import FileSelector

        with store_errors(self):
            found = self.filesystem.get_file_info(FileSelector(self.key, allow_not_found=True, recursive=True))
        return [(StorePath(self.parts[0], info.path), info) for info in found if info.type.name == "File"]

    def glob(self, pattern: str, **options: Any) -> Generator[StorePath, None, None]:
        """As `Path.glob`, without `**`."""
        del options
        first, _, rest = pattern.partition("/")
        for path, info in self.entries():
            if fnmatchcase(path.name, first):
                if not rest:
                    yield path
                elif info.type.name == "Directory":
                    yield from path.glob(rest)

    def open(self, mode: str = "r", *_: Any, encoding: str | None = None, **__: Any) -> IO[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """For reading only: what is written is written at once."""
        if mode == "rb":
            with store_errors(self):
                return self.filesystem.open_input_file(self.key)  # pyright: ignore[reportReturnType]
        if mode == "r":
            return io.TextIOWrapper(io.BytesIO(self.read_bytes()), encoding=encoding or "utf-8")
        raise ValueError(f"{self} can be opened for reading only, got mode {mode!r}")

    def read_bytes(self) -> bytes:
        with self.open("rb") as file, store_errors(self):
            return file.read()

    def read_text(self, encoding: str | None = None, errors: str | None = None, *_: Any) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def write_bytes(self, data: Any) -> int:
        """The whole object, in the place of one that was there."""
        with store_errors(self), ThreadPoolExecutor(max_workers=1) as uncut:
            return uncut.submit(_put, self.filesystem, self.key, data).result()

    def write_text(self, data: str, encoding: str | None = None, *_: Any, **__: Any) -> int:
        return self.write_bytes(data.encode(encoding or "utf-8"))

    def _info(self) -> FileInfo:
        with store_errors(self):
            return self.filesystem.get_file_info(self.key)


def upload(source: BinaryIO, target: Path) -> None:
    """Puts all of a local file into a store, in the place of what was there.

    Raises:
      UserError: the store does not take it; what was there stays.
    """
    if not source.seek(0, os.SEEK_END):  # nothing to map
        target.write_bytes(b"")
        return
    with mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as content:
        target.write_bytes(content)


def download(source: Path, target: Path) -> None:
    """Copies an object to a local file.

    Raises:
      UserError: the store does not give it.
    """
    with source.open("rb") as file, target.open("wb") as copy, store_errors(source):
        while piece := file.read(1 << 24):
            copy.write(piece)


def remove_tree(path: Path) -> None:
    """Removes everything under a path of a store, by one request per thousand objects."""
    if isinstance(path, StorePath):
        with store_errors(path), suppress(FileNotFoundError):
            path.filesystem.delete_dir(path.key)


@contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """Turns what a store answers into one line.

    Raises:
      Unreachable: no such bucket, no permission, no way to the store.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if not is_failure(error):
            raise
        raise StoreUnreachable(
            f"{path} cannot be reached: {_reason(error)}. Check the address, and endpoint, region and credentials in "
            "the environment; what was committed is kept, and the same command goes on there"
        ) from error


def is_failure(error: Exception) -> bool:
    """Whether it was a store that failed, not what lies in it."""
    return isinstance(error, OSError) and any(sign in str(error) for sign in _FAILURES)


def _reason(error: OSError) -> str:
    text = " ".join(str(error).split())
    return text.partition(" (Request ID")[0].removesuffix(".")


def _put(filesystem: FileSystem, key: str, data: Any) -> int:
    with filesystem.open_output_stream(key) as stream:
        return stream.write(data) or 0


@lru_cache(maxsize=64)
def _filesystem(scheme: str, bucket: str) -> FileSystem:
    from pyarrow.fs import FileSystem

    return FileSystem.from_uri(f"{scheme}//{bucket}?{_OPTIONS[scheme]}")[0]
