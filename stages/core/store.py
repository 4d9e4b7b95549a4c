"""Represent an address in an object store (`s3://bucket/key`, `gs://bucket/key`) by a `StorePath`; copy its objects.

Stores are accessed through the file systems of pyarrow, which read endpoint, region and credentials from the usual
places (`AWS_ENDPOINT_URL`, `AWS_PROFILE`, `~/.aws`, `GOOGLE_APPLICATION_CREDENTIALS` …).

Writing an object is atomic: its bytes are written in one call, in a thread that no signal interrupts, and a store never
exposes an interrupted upload. A store has no directories of its own: a directory exists while an object's key begins
with its name.

pyarrow is imported inside functions because this module is imported for `--help`.
"""

from __future__ import annotations

import io
import mmap
import os
import posixpath
import signal
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar

from stages.core.errors import StoreUnreachable

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

_FILESYSTEM_OPTIONS = {"s3": "allow_delayed_open=true", "gs": "retry_limit_seconds=60"}
"""S3: send a small object in one request when its stream closes, instead of a multipart upload.
GCS: give up on a store that does not respond after a minute; the default is 15 minutes."""
SCHEMES = tuple(_FILESYSTEM_OPTIONS)
_STORE_FAILURES = ("AWS Error", "google::cloud", "Couldn't resolve host", "curlCode")
"""Substrings of pyarrow's messages for failures of the store (as opposed to a missing or corrupt file)."""
_SIGNAL_CHECK_SECONDS = 0.5
"""Longest wait before a signal that another thread received is handled."""
T = TypeVar("T")
_DOWNLOAD_BYTES = 1 << 24
"""Bytes that a download holds in memory at a time."""


@dataclass(frozen=True, order=True, slots=True, repr=False)
class StorePath:
    """An address in an object store, with the methods of `pathlib.Path` that the stages use.

    It is not an `os.PathLike`: passing it to a function that needs a local file is a type error, for the type checker
    and at run time.
    """

    scheme: str
    """"s3" or "gs"."""
    pure: PurePosixPath
    """`bucket/key`."""

    @classmethod
    def parse(cls, address: str) -> StorePath:
        """Return the path of an address `SCHEME://BUCKET/KEY`."""
        scheme, _, rest = address.partition("://")
        return cls(scheme, PurePosixPath(rest))

    def __str__(self) -> str:
        return f"{self.scheme}://{self.pure}"

    def __repr__(self) -> str:
        return f"StorePath({str(self)!r})"

    def __truediv__(self, key: str | PurePosixPath) -> StorePath:
        return StorePath(self.scheme, self.pure / key)

    @property
    def name(self) -> str:
        return self.pure.name

    @property
    def stem(self) -> str:
        return self.pure.stem

    @property
    def suffix(self) -> str:
        return self.pure.suffix

    @property
    def bucket(self) -> str:
        return self.pure.parts[0]

    @property
    def root(self) -> str:
        """The address of the bucket."""
        return f"{self.scheme}://{self.bucket}"

    @property
    def key(self) -> str:
        """The path within pyarrow's file system: `bucket/key`, without `..`."""
        return posixpath.normpath(self.pure.as_posix())

    @property
    def parent(self) -> StorePath:
        """The directory above; a bucket is its own parent, as `/` is in a file system."""
        return self if len(self.pure.parts) == 1 else StorePath(self.scheme, self.pure.parent)

    @property
    def parents(self) -> Sequence[StorePath]:
        return [StorePath(self.scheme, above) for above in self.pure.parents if above.parts]

    def with_name(self, name: str) -> StorePath:
        return StorePath(self.scheme, self.pure.with_name(name))

    def relative_to(self, other: StorePath) -> PurePosixPath:
        return self.pure.relative_to(other.pure)

    @property
    def filesystem(self) -> FileSystem:
        """The file system of pyarrow for the bucket.

        Raises:
          StoreUnreachable: the store cannot be reached.
        """
        with store_errors(self):
            return _filesystem(self.scheme, self.bucket)

    def expanduser(self) -> StorePath:
        return self

    def resolve(self) -> StorePath:
        return StorePath(self.scheme, PurePosixPath(self.key))

    def exists(self) -> bool:
        return self._info().type.name != "NotFound"

    def is_file(self) -> bool:
        return self._info().type.name == "File"

    def is_dir(self) -> bool:
        return self._info().type.name == "Directory"

    def stat(self) -> os.stat_result:
        found = self._info()
        if found.type.name == "NotFound":
            raise FileNotFoundError(f"{self} does not exist")
        mode, time = stat.S_IFREG if found.type.name == "File" else stat.S_IFDIR, found.mtime_ns or 0
        times = (time // 10**9,) * 3
        return os.stat_result(
            (mode, 0, 0, 0, 0, 0, found.size or 0, *times), {"st_mtime_ns": time, "st_ctime_ns": time}
        )

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a directory exists as soon as an object is written in it."""

    def unlink(self, missing_ok: bool = False) -> None:
        ignored = (FileNotFoundError,) if missing_ok else ()
        with store_errors(self), suppress(*ignored):
            self.filesystem.delete_file(self.key)

    def iterdir(self) -> Iterator[StorePath]:
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
        return [(StorePath(self.scheme, PurePosixPath(info.path)), info) for info in found if info.type.name == "File"]

    def glob(self, pattern: str) -> Iterator[StorePath]:
        """Yield the matching paths as `Path.glob` does, but without support for `**`."""
        first, _, rest = pattern.partition("/")
        for path, info in self.entries():
            if fnmatchcase(path.name, first):
                if not rest:
                    yield path
                elif info.type.name == "Directory":
                    yield from path.glob(rest)

    def open(
        self, mode: Literal["r", "rb"] = "r", *, encoding: str | None = None, newline: str | None = None
    ) -> IO[Any]:
        """Open an object for reading. Use `write_bytes` to write one: a store cannot write parts of an object."""
        if mode == "rb":
            with store_errors(self):
                return self.filesystem.open_input_file(self.key)  # pyright: ignore[reportReturnType]
        if mode == "r":
            return io.TextIOWrapper(io.BytesIO(self.read_bytes()), encoding=encoding or "utf-8", newline=newline)
        raise ValueError(f"{self} can only be opened for reading; expected mode 'r' or 'rb', got {mode!r}")

    def read_bytes(self) -> bytes:
        with self.open("rb") as file, store_errors(self):
            return file.read()

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def write_bytes(self, data: bytes | mmap.mmap) -> int:
        """Write a whole object atomically, replacing an existing one."""
        with store_errors(self):
            return _call_in_thread(_put, self.filesystem, self.key, data)

    def write_text(self, data: str, encoding: str | None = None) -> int:
        return self.write_bytes(data.encode(encoding or "utf-8"))

    def _info(self) -> FileInfo:
        with store_errors(self):
            return self.filesystem.get_file_info(self.key)


def upload(source: BinaryIO, target: StorePath) -> None:
    """Copy an open local file to an object, replacing an existing one.

    Raises:
      StoreUnreachable: the store refuses the object; an existing object is unchanged.
    """
    if not source.seek(0, os.SEEK_END):  # an empty file cannot be mapped
        target.write_bytes(b"")
        return
    with mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as content:
        target.write_bytes(content)


def download(source: StorePath, target: BinaryIO) -> None:
    """Copy an object to an open local file.

    Raises:
      FileNotFoundError: there is no such object.
      StoreUnreachable: the store cannot be reached.
    """
    with source.open("rb") as file, store_errors(source):
        while block := file.read(_DOWNLOAD_BYTES):
            target.write(block)


def remove_tree(path: StorePath) -> None:
    """Delete every object below a path (one request per thousand objects)."""
    with store_errors(path), suppress(FileNotFoundError):
        path.filesystem.delete_dir(path.key)


@contextmanager
def store_errors(path: Path | StorePath) -> Iterator[None]:
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
        except BaseException as error:  # raised in the thread of the caller
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
        if thread.ident is not None:  # after an interrupt, `join` alone treats the thread as ended
            wait((outcome,))
            thread.join()


def _put(filesystem: FileSystem, key: str, data: Any) -> int:
    with filesystem.open_output_stream(key) as stream:
        return stream.write(data) or 0


@lru_cache(maxsize=64)
def _filesystem(scheme: str, bucket: str) -> FileSystem:
    """Return the file system of a bucket, made once per process."""
    from pyarrow.fs import FileSystem

    return FileSystem.from_uri(f"{scheme}://{bucket}?{_FILESYSTEM_OPTIONS[scheme]}")[0]
