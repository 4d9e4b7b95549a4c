"""The error hierarchy: every message says what was expected, what was found, where, and what to do.

The exit code of the command is the class attribute `exit_code`; whatever is neither a `SpoError` nor
`Interrupted` is a defect of ours (1).
"""

from collections.abc import Iterable
from difflib import get_close_matches


class SpoError(Exception):
    """Anything that a command reports in one line, without a traceback."""

    exit_code = 1


class UserError(SpoError, ValueError):
    """A wrong flag, a file of the wrong kind, a model without a tokenizer, a full disk: nothing was written."""

    exit_code = 2


class StoreUnreachable(UserError):
    """What may well be there cannot be read or written now: nobody may take it for torn, stale or missing."""


class FingerprintMismatch(UserError):
    """The output already holds work of another configuration."""


class IncompleteInput(SpoError, FileNotFoundError):
    """The input lacks parts, or a part of it is torn: make it whole, then run this again."""

    exit_code = 3


class Interrupted(BaseException):
    """A signal ended the stage; what was committed stays and the same command resumes there.

    No `Exception`, like Ctrl-C's own: a user's function that survives any of its errors must not survive a signal.
    """

    exit_code = 4


def first_line(error: BaseException) -> str:
    """What an error of a library says, in a line of ours: its first line that is not empty, else its kind."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def did_you_mean(given: str, names: Iterable[str]) -> str:
    """Return ` Did you mean 'NAME'?` for the name most like the given one; "" where none is like it."""
    bare = {name.lstrip("-").replace("_", "-"): name for name in names}  # dashes are no likeness
    found = get_close_matches(given.lstrip("-").replace("_", "-"), bare, n=1)
    return f" Did you mean {bare[found[0]]!r}?" if found else ""
