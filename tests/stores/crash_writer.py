"""A process that starts writers into a store and kills them, for test_parts.py: one line in per writer, one out.

In: `DIRECTORY EVENT`: SIGKILL at the EVENT-th moment; a writer has one before, amid and after each object of its table.
Out, once all lines are in: the number of the signal that ended the writer, 0 if it ran to its end.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.paths import as_path
from tests.shards.samples import trajectories, write_part


def die_at(event: int) -> None:
    """SIGKILL to this process at the `event`-th moment."""
    events = itertools.count(1)

    def reached() -> None:
        if next(events) == event:
            os.kill(os.getpid(), signal.SIGKILL)

    def put(filesystem: Any, key: str, data: Any) -> int:
        if "_logs/" in key:
            return whole(filesystem, key, data)
        reached()
        with filesystem.open_output_stream(key) as stream:
            half = len(data) // 2
            stream.write(data[:half])
            stream.flush()
            reached()
            stream.write(data[half:])
        reached()
        return len(data)

    whole, paths._put = paths._put, put


def write(directory: Path) -> None:
    """The work: one part of 23 rows in 2 chunks."""
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
        write(as_path(directory))
        os._exit(0)
    return child


if __name__ == "__main__":
    main()
