"""A function that fails in every way that untrusted input can cause; test_sandbox calls it in a sandbox."""

from __future__ import annotations

import os
import signal
import time


def behave(what: str, argument: float) -> float:
    """Return the argument or a process id, or fail as `what` says."""
    if what == "spin":  # a loop in C, in which Python runs no signal handler
        return len(str(9**9**9))
    if what == "sleep":
        time.sleep(argument)
    elif what == "eat":
        return len(bytearray(int(argument)))
    elif what == "raise":
        raise RecursionError
    elif what == "print":
        print("{" * int(argument), flush=True)
    elif what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "parent":
        return os.getppid()
    elif what == "self":
        return os.getpid()
    return argument
