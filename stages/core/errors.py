"""Define the errors that commands report; a message says what was expected, what was found, where, and what to do.

The class attribute `exit_code` is the exit code of the command. Any exception that is neither a `SpoError` nor
`Interrupted` is a bug in spo and exits with 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SpoError(Exception):
    """An error that a command reports in one line, without a traceback."""

    exit_code = 1


class UserError(SpoError, ValueError):
    """The user must change something: a flag, a file of the wrong kind, a model without a tokenizer, a full disk.

    The command has written no output.
    """

    exit_code = 2


class StoreUnreachable(UserError):
    """The store is unreachable; do not treat the object as missing, stale or corrupt."""


class FingerprintMismatch(UserError):
    """The output directory holds parts of a different configuration."""


class IncompleteInput(SpoError, FileNotFoundError):
    """Parts of the input are missing or corrupt; complete the input, then rerun the command."""

    exit_code = 3


class NoSignal(SpoError):
    """The responses leave nothing to learn, and --fail-on-no-signal is given. Output that was written is complete."""

    exit_code = 5


class Interrupted(BaseException):
    """A signal ended the stage. Committed chunks are kept; the same command resumes from them.

    Like `KeyboardInterrupt`, this is not an `Exception`: a user's function with `except Exception` must not swallow it.
    """

    exit_code = 4


def first_line(error: BaseException) -> str:
    """Return the first non-empty line of an error's message, or the name of its class."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


_OTHER_NAMES = {
    "dataset-name": "data",
    "max-completion-length": "max-tokens",
    "max-new-tokens": "max-tokens",
    "model-name-or-path": "model",
    "n": "num-generations",
    "num-iterations": "epochs",
    "num-train-epochs": "epochs",
    "peft-config": "lora-r",
    "reward": "task-arg",
    "reward-funcs": "task-arg",
    "train-dataset": "data",
    "use-vllm": "engine",
}
"""Name of an option in TRL, transformers or vLLM → our name for it."""


def did_you_mean(given: str, names: Iterable[str]) -> str:
    """Return ` Did you mean 'NAME'?` for the most similar name, or "" if no name is similar."""
    names = list(names)
    # Users of other tools write `lr`.
    initials = {
        "".join(word[0] for word in name.strip("-").replace("_", "-").split("-") if word): name for name in names
    }
    if (short := given.strip("-")) in initials and len(short) > 1:
        return f" Did you mean {initials[short]!r}?"
    # Compare without dashes, else every two flags are similar by their leading `--`.
    bare = {name.lstrip("-").replace("_", "-").lower(): name for name in names}
    word = given.lstrip("-").replace("_", "-").lower()
    if _OTHER_NAMES.get(word) in bare:
        return f" Did you mean {bare[_OTHER_NAMES[word]]!r}?"
    found = get_close_matches(word, bare, n=1)
    return f" Did you mean {bare[found[0]]!r}?" if found else ""


def one_of(names: Iterable[str], given: object) -> str:
    """Return the end of an error message about a choice: `one of a, b; got 'c'`, and the most similar name if any."""
    names = list(names)
    guess = did_you_mean(given, names) if isinstance(given, str) else ""
    return f"one of {', '.join(names)}; got {given!r}{'.' if guess else ''}{guess}"
