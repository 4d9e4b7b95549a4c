"""The two streams that `spo` prints to: invisible text from outside is escaped, and the loss of a stream is survived.

Artefacts, models and data come from anywhere. An id may hold terminal control sequences, or characters that turn the
direction of writing. `_Console` is the only way to the terminal, and replaces them by escapes such as `\\u001b`, which
JSON reads back as the same text.
"""

from __future__ import annotations

import codecs
import os
import re
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from stages.core.errors import UserError

_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f\ud800-\udfff]"
)
"""Control characters except tab and newline, marks of direction, invisible and unpaired characters. Joiners stay."""
_BREAK = re.compile(r"\s*[\n\r\v\f\x85\u2028\u2029]\s*")
_LONGEST_WORD, _LONGEST_LINE = 400, 1500


def visible(text: str) -> str:
    """Return a text with every invisible character replaced by its escape."""
    return _INVISIBLE.sub(lambda match: _escape(match[0]), text)


def one_line(message: str) -> str:
    """Return a message without line breaks; a very long one is cut in the middle."""
    words = [_cut(word, _LONGEST_WORD) for word in _BREAK.sub(" ", message).split(" ")]
    return _cut(" ".join(words), _LONGEST_LINE)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most * 3 // 4]}…{text[-most // 4 :]}"


def _escape(text: str) -> str:
    """Return the escapes that JSON has for a text: one for each unit of UTF-16."""
    units = text.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{int.from_bytes(units[i : i + 2]):04x}" for i in range(0, len(units), 2))


def _escape_error(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return _escape(error.object[error.start : error.end]), error.end


codecs.register_error("visible", _escape_error)


class ReaderLeft(SystemExit):
    """The reader of stdout has closed it (`spo show … | head`), which is not a failure: the exit code is 0."""

    def __init__(self) -> None:
        super().__init__(0)


class _Stream:
    """stdout or stderr; once it cannot be written to, the rest is discarded, also at the end of the process."""

    def __init__(self, stream: TextIO, *, matters: bool) -> None:
        self._stream, self._matters = stream, matters
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="visible")  # pyright: ignore[reportAttributeAccessIssue]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Discard what is printed from now on; report the loss of results, unless their reader has left (`| head`)."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)
        if self._matters and isinstance(error, BrokenPipeError):
            raise ReaderLeft from error
        if self._matters:
            raise UserError(f"cannot print the results: {error.strerror}; what was computed is kept") from error


class _Console(Console):
    """A console that prints visible text only; Rich's own control sequences pass."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or not _INVISIBLE.search(segment.text):
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        raise ReaderLeft


def stdout() -> Console:
    """Return a console for results; a new one each time, so that it follows a redirected `sys.stdout`."""
    return _Console(file=_Stream(sys.stdout, matters=True), highlight=False)  # pyright: ignore[reportArgumentType]


def stderr() -> Console:
    """Return a console for progress, notes and errors."""
    return _Console(file=_Stream(sys.stderr, matters=False), stderr=True, highlight=False)  # pyright: ignore[reportArgumentType]
