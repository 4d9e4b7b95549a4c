"""A function that fails in every way that untrusted input can cause; test_sandbox calls it in a sandbox."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any


def behave(what: str, argument: Any) -> Any:
    """Return the argument or a process id, or fail as `what` says."""
    if what == "spin":  # a loop in C, in which Python runs no signal handler
        return len(str(9**9**9))
    if what == "sleep":
        time.sleep(argument)
    elif what == "sleep_once":  # the argument is a file that records the first call
        if not Path(argument).exists():
            Path(argument).touch()
            time.sleep(60)
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
