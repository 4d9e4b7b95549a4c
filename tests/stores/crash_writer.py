"""A process that starts writers into a store and kills them, for test_parts.py.

It reads one line `DIRECTORY EVENT` per writer: the writer sends itself SIGKILL at that event. Events count from 1; each
object of the table has three: before its upload, in the middle of it, and after it. After the last line, the process
prints one line per writer: the number of the signal that ended it, 0 if it finished.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from typing import Any

from stages.core import store
from stages.core.store import StorePath
from tests.shards.samples import PathT, trajectories, write_part


def die_at(event: int) -> None:
    """Make this process send itself SIGKILL at the `event`-th event."""
    events = itertools.count(1)

    def pass_event() -> None:
        if next(events) == event:
            os.kill(os.getpid(), signal.SIGKILL)

    def put(filesystem: Any, key: str, data: Any) -> int:
        if "_logs/" in key:
            return original_put(filesystem, key, data)
        pass_event()
        with filesystem.open_output_stream(key) as stream:
            half = len(data) // 2
            stream.write(data[:half])
            stream.flush()
            pass_event()
            stream.write(data[half:])
        pass_event()
        return len(data)

    original_put, store._put = store._put, put


def write(directory: PathT) -> None:
    """Write one part of 23 rows in 2 chunks."""
    write_part(directory, 1, 2, table=trajectories(23), chunk=12)


def main() -> None:
    children = [_start(*line.split()) for line in sys.stdin]
    for child in children:
        _, status = os.waitpid(child, 0)
        print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status))


def _start(directory: str, event: str) -> int:
    child = os.fork()
    if child == 0:
        die_at(int(event))
        write(StorePath.parse(directory))
        os._exit(0)
    return child


if __name__ == "__main__":
    main()
