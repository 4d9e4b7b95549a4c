"""Recognize the errors of a limit of the machine or of the shell: they are the user's to solve, and no defects."""

from __future__ import annotations

import errno

_NO_MEMORY = ("can't allocate memory", "failed to map segment", "out of memory", "Cannot allocate memory")
"""How torch and the loader of shared libraries say that there is no memory."""
_TOO_MANY = {errno.EAGAIN, errno.EMFILE, errno.ENFILE}


def limit_message(error: Exception) -> str | None:
    """Return the message for a limit that the command ran into; None for any other error."""
    text, number = str(error), getattr(error, "errno", 0)
    if isinstance(error, MemoryError) or number == errno.ENOMEM or any(sign in text for sign in _NO_MEMORY):
        return "not enough memory: choose smaller batches or fewer rows, or raise the limit (ulimit -v, --mem of a job)"
    if number in _TOO_MANY or "can't start new thread" in text:
        return f"a limit of processes, threads or open files is reached ({text}): raise it (ulimit -u, ulimit -n)"
    if text.startswith("Symlink loop"):
        return f"{text}: expected a path without circular links"
    return None
