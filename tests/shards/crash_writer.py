"""A process that starts writers and kills them, for test_crashes.py: one input line and one output line per writer.

In: `[DIRECTORY, EVENT, SECONDS]`: kill at the EVENT-th change to the disk (0: never), or after SECONDS (0: never).
Out: the number of the signal that ended the writer, 0 if it ran to its end.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.shards.samples import trajectories, write_part


def die_at(event: int) -> None:
    """Kill this process right before or right after the call that changes the disk for the `event`-th time."""
    events = itertools.count(1)

    def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **keywords: Any) -> Any:
            if next(events) == event:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*args, **keywords)
            if next(events) == event:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped

    for name in ("fsync", "replace", "unlink", "mkdir", "rmdir", "truncate"):
        setattr(os, name, deadly(getattr(os, name)))


def write(directory: Path) -> None:
    """Write one part of 23 rows in 6 chunks."""
    write_part(directory, 1, 2, table=trajectories(23), chunk=4)


def main() -> None:
    for line in sys.stdin:
        directory, event, seconds = json.loads(line)
        child = os.fork()
        if child == 0:
            die_at(event)
            write(Path(directory))
            os._exit(0)
        if seconds:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
