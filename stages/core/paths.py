"""Represent local paths and addresses in object stores (`s3://bucket/key`, `gs://bucket/key`) by one type, `Path`.

A `StorePath` implements the operations of `Path` that the stages use. It subclasses `PosixPath`, so that one function
serves both kinds of path. Any other operation of `Path` would need a name in the local file system, and raises
TypeError. Stores are accessed through the file systems of pyarrow, which read endpoint, region and credentials from the
usual places (`AWS_ENDPOINT_URL`, `AWS_PROFILE`, `~/.aws`, `GOOGLE_APPLICATION_CREDENTIALS` …).

Writing an object is atomic: its bytes are written in one call, in a thread that no signal interrupts, and a store never
shows an upload that was cut short. A store has no directories of its own: a directory exists while an object's key
begins with its name.

pyarrow is imported inside functions because this module is imported for `--help`.
"""

from __future__ import annotations

import io
import mmap
import os
import posixpath
import signal
import stat
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PosixPath
from threading import Thread
from typing import IO, TYPE_CHECKING, Any, BinaryIO, TypeVar

from stages.core.errors import StoreUnreachable, UserError

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

_SCHEMES = ("s3", "gs")
_MISSPELLED_SCHEMES = ("s3:/", "gs:/")
"""Addresses that lack a slash. They are refused, because otherwise they would pass as local paths."""
_FILESYSTEM_OPTIONS = {"s3:": "allow_delayed_open=true", "gs:": "retry_limit_seconds=60"}
"""S3: send a small object in one request when its stream closes, instead of a multipart upload.
GCS: give up on a store that does not respond after a minute; the default is 15 minutes."""
_STORE_FAILURES = ("AWS Error", "google::cloud", "Couldn't resolve host", "curlCode")
"""Substrings of pyarrow's messages for failures of the store (as opposed to a missing or corrupt file)."""
_SIGNAL_CHECK_SECONDS = 0.5
"""Longest wait before a signal that another thread received is handled."""
T = TypeVar("T")
_DOWNLOAD_BYTES = 1 << 24
"""Bytes that a download holds in memory at a time."""


def as_path(text: str | Path) -> Path:
    """Return the path for a text from the command line, a recipe or a lineage; a path is returned unchanged.

    Raises:
      UserError: the text is an address other than `s3://bucket/…` or `gs://bucket/…`.
    """
    if isinstance(text, Path):
        return text
    scheme, is_address, rest = text.partition("://")
    if not is_address and not text.startswith(_MISSPELLED_SCHEMES):
        return Path(text)
    if scheme not in _SCHEMES or not rest or rest.startswith("/"):
        raise UserError(f"expected a local path, s3://BUCKET/KEY or gs://BUCKET/KEY; got {text!r}")
    return StorePath(f"{scheme}:/{rest}")


def is_local(path: Path) -> bool:
    """Return whether a path belongs to a file system of this machine."""
    return not isinstance(path, StorePath)


def relative_path(path: Path, directory: Path) -> str:
    """Return a reference from a directory to a path, for a lineage; `locate` resolves it.

    Returns:
      `path` relative to `directory`, with forward slashes. If the two have no common root (another bucket, or one in a
      store and one local), the absolute path.
    """
    path, directory = path.resolve(), directory.resolve()
    if isinstance(path, StorePath) and isinstance(directory, StorePath) and path.parts[:2] == directory.parts[:2]:
        return posixpath.relpath(path.key, directory.key)
    if isinstance(path, StorePath) or isinstance(directory, StorePath):
        return str(path)
    return Path(os.path.relpath(path, directory)).as_posix()


def locate(reference: str, directory: Path) -> Path:
    """Return the path that `relative_path` wrote as a reference from a directory, without `..` in it."""
    if "://" in reference or os.path.isabs(reference):
        return as_path(reference)
    if isinstance(directory, StorePath):
        return (directory / reference).resolve()
    return Path(os.path.normpath(directory.resolve() / reference))


def cache_directory() -> Path:
    """Return the directory for local copies of objects and for files to upload: `SPO_CACHE`, else the user's cache."""
    if given := os.environ.get("SPO_CACHE"):
        return Path(given).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "spo"


def is_path_reference(name: str) -> bool:
    """Return whether a model name from a lineage can only be a path, and not a name on the Hugging Face hub.

    The lineage of a model that has been moved or deleted still names its path; the file system cannot decide then.
    """
    return name.startswith("..") or "://" in name or os.path.isabs(name)


class StorePath(PosixPath):
    """An address in an object store. `parts[0]` is the scheme with a colon ("s3:"), `parts[1]` the bucket."""

    __slots__ = ()

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)  # pathlib collapses the double slash

    def __fspath__(self) -> str:
        # Called by every operation of `Path` that this class does not override.
        raise TypeError(f"{self} is in an object store and has no path on this machine; expected a local path")

    @property
    def key(self) -> str:
        """The path within pyarrow's file system: `bucket/key`."""
        return posixpath.normpath("/".join(self.parts[1:]))

    @property
    def filesystem(self) -> FileSystem:
        """The file system of pyarrow for the bucket.

        Raises:
          StoreUnreachable: the store cannot be reached.
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
        """Do nothing: a directory exists as soon as an object is written in it."""

    def unlink(self, missing_ok: bool = False) -> None:
        ignored = (FileNotFoundError,) if missing_ok else ()
        with store_errors(self), suppress(*ignored):
            self.filesystem.delete_file(self.key)

    def iterdir(self) -> Generator[StorePath, None, None]:
        return (path for path, _ in self.entries())

    def entries(self) -> list[tuple[StorePath, FileInfo]]:
        """Return the content of a directory, sorted by name. Costs one request per thousand entries."""
        from pyarrow.fs import FileSelector

        with store_errors(self):
            found = self.filesystem.get_file_info(FileSelector(self.key, allow_not_found=True))
        named = sorted((info for info in found if info.base_name), key=lambda info: info.base_name)
        return [(self / info.base_name, info) for info in named]

    def walk_files(self) -> list[tuple[StorePath, FileInfo]]:
        """Return every object below a directory, at any depth."""
        from pyarrow.fs import FileSelector

        with store_errors(self):
            found = self.filesystem.get_file_info(FileSelector(self.key, allow_not_found=True, recursive=True))
        return [(StorePath(self.parts[0], info.path), info) for info in found if info.type.name == "File"]

    def glob(self, pattern: str, **options: Any) -> Generator[StorePath, None, None]:
        """Yield the matching paths as `Path.glob` does, but without support for `**`."""
        del options  # accepted for the signature of Path.glob; keys are always case-sensitive
        first, _, rest = pattern.partition("/")
        for path, info in self.entries():
            if fnmatchcase(path.name, first):
                if not rest:
                    yield path
                elif info.type.name == "Directory":
                    yield from path.glob(rest)

    def open(self, mode: str = "r", *_: Any, encoding: str | None = None, **__: Any) -> IO[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Open an object for reading. Use `write_bytes` to write one: a store cannot write parts of an object."""
        if mode == "rb":
            with store_errors(self):
                return self.filesystem.open_input_file(self.key)  # pyright: ignore[reportReturnType]
        if mode == "r":
            return io.TextIOWrapper(io.BytesIO(self.read_bytes()), encoding=encoding or "utf-8")
        raise ValueError(f"{self} can only be opened for reading; expected mode 'r' or 'rb', got {mode!r}")

    def read_bytes(self) -> bytes:
        with self.open("rb") as file, store_errors(self):
            return file.read()

    def read_text(self, encoding: str | None = None, errors: str | None = None, *_: Any) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def write_bytes(self, data: Any) -> int:
        """Write a whole object atomically, replacing an existing one."""
        with store_errors(self):
            return _call_in_thread(_put, self.filesystem, self.key, data)

    def write_text(self, data: str, encoding: str | None = None, *_: Any, **__: Any) -> int:
        return self.write_bytes(data.encode(encoding or "utf-8"))

    def _info(self) -> FileInfo:
        with store_errors(self):
            return self.filesystem.get_file_info(self.key)


def upload(source: BinaryIO, target: Path) -> None:
    """Copy an open local file to an object, replacing an existing one.

    Raises:
      StoreUnreachable: the store refuses the object; an existing object is unchanged.
    """
    if not source.seek(0, os.SEEK_END):  # an empty file cannot be mapped
        target.write_bytes(b"")
        return
    with mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as content:
        target.write_bytes(content)


def download(source: Path, target: BinaryIO) -> None:
    """Copy an object to an open local file.

    Raises:
      FileNotFoundError: there is no such object.
      StoreUnreachable: the store cannot be reached.
    """
    with source.open("rb") as file, store_errors(source):
        while block := file.read(_DOWNLOAD_BYTES):
            target.write(block)


def remove_tree(path: Path) -> None:
    """Delete every object below a path of a store (one request per thousand objects); do nothing for a local path."""
    if isinstance(path, StorePath):
        with store_errors(path), suppress(FileNotFoundError):
            path.filesystem.delete_dir(path.key)


@contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """Convert failures of a store to `StoreUnreachable`, whose message is one line.

    Raises:
      StoreUnreachable: the bucket does not exist, permission is denied, or the store does not respond.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if not any(sign in str(error) for sign in _STORE_FAILURES):
            raise  # about the file itself, for example a corrupt footer
        raise StoreUnreachable(
            f"{path} cannot be reached: {_reason(error)}. Check the address, and the endpoint, region and credentials "
            "in the environment, then rerun the command; it resumes from the committed chunks"
        ) from error


def _reason(error: OSError) -> str:
    """Return pyarrow's message on one line, without the id of the request."""
    text = " ".join(str(error).split())
    return text.partition(" (Request ID")[0].removesuffix(".")


def _call_in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in another thread and wait until it ends, also when a signal handler raises in this thread.

    Python runs signal handlers in the main thread only. In another thread, an exception raised by a handler cannot
    interrupt an upload and close its stream early.
    """
    outcome: Future[T] = Future()

    def call() -> None:
        try:
            outcome.set_result(function(*arguments))
        except BaseException as error:  # passed on to the caller
            outcome.set_exception(error)

    thread = Thread(target=call)
    # The thread starts with all signals blocked, so that they reach the main thread, which waits for it interruptibly.
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        thread.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        while not outcome.done():
            wait((outcome,), _SIGNAL_CHECK_SECONDS)
        return outcome.result()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        if thread.ident is not None:  # `join` alone would not do: interrupted once, it takes the thread for ended
            wait((outcome,))
            thread.join()


def _put(filesystem: FileSystem, key: str, data: Any) -> int:
    with filesystem.open_output_stream(key) as stream:
        return stream.write(data) or 0


@lru_cache(maxsize=64)
def _filesystem(scheme: str, bucket: str) -> FileSystem:
    """Return the file system of a bucket, made once per process."""
    from pyarrow.fs import FileSystem

    return FileSystem.from_uri(f"{scheme}//{bucket}?{_FILESYSTEM_OPTIONS[scheme]}")[0]
