"""Which shards of the work this process does (`--shard`, `--num-shards`, SLURM arrays), and how a signal ends it."""

from __future__ import annotations

import math
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

from stages.core.errors import Interrupted, UserError
from stages.core.paths import AnyPath
from stages.shards.names import find_split

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Signals that end a stage: preemption, the time limit, Ctrl-C."""

_REPETITION_SECONDS = 5.0
"""Seconds in which further signals count as repetitions of the first: schedulers send several."""

ALL = "all"
"""The value of `--shard` for all shards of the split that the output directory holds."""

_TASK_VARIABLE = "SLURM_ARRAY_TASK_ID"
_interrupted_at = -math.inf


@dataclass(frozen=True)
class Shard:
    """Shard `index` of `count`, counted from 0.

    Raises:
      UserError: the index is not in 0 … count − 1.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UserError(
                f"shard {self} does not exist: expected 0/{self.count} to {self.count - 1}/{self.count}"
                if self.count > 0
                else f"shard {self}: the number of shards must be at least 1"
            )

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_shard(text: str) -> Shard:
    """Return the shard that `--shard` names: "3/8" is the fourth of eight.

    Raises:
      UserError: the text has another form, or the index is too large.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if not match:
        raise UserError(f"--shard must be I/N counted from 0, such as 0/8 … 7/8, or all; got {text!r}")
    return Shard(int(match[1]), int(match[2]))


class ShardOptions(Protocol):
    """The options that choose the shards of a process (`stages.configs.shared.OutputOptions`)."""

    @property
    def out(self) -> AnyPath: ...
    @property
    def shard(self) -> str | None: ...
    @property
    def num_shards(self) -> int | None: ...
    @property
    def shards_per_task(self) -> int: ...


def resolve_shards(options: ShardOptions, environment: Mapping[str, str] = os.environ) -> tuple[Shard, ...]:
    """Return the shards that this process does, adjacent and in order.

    1. `--shard I/N`: shard I of N. `--shard all`: as in 4.
    2. `--num-shards N --shards-per-task K`: in a SLURM array, shards tK to tK + K − 1 of task t; otherwise all N.
    3. Neither, in a SLURM array written as 0 to N−1: the shard with the number of the task.
    4. Otherwise: the whole work, in the split that the output directory holds, so that work that began in several
       parts continues in them; shard 0 of 1 in an empty directory.

    Raises:
      UserError: the options exclude each other, or the task numbers of the array do not fit.
    """
    if options.shard is not None and options.num_shards is not None:
        raise UserError(
            f"--shard {options.shard} already gives the number of shards: omit --num-shards {options.num_shards}, "
            "or --shard"
        )
    if options.shards_per_task > 1 and options.num_shards is None:
        raise UserError(f"--shards-per-task {options.shards_per_task} needs the number of shards: pass --num-shards N")
    if options.shard not in (None, ALL):
        return (parse_shard(options.shard),)
    if options.num_shards is None:
        own = None if options.shard == ALL else _shard_of_array(environment)
        return (own,) if own else all_shards(find_split(options.out) or 1)
    task = environment.get(_TASK_VARIABLE)
    if task is None:
        return all_shards(options.num_shards)
    return task_shards(_task_number(task), options.num_shards, options.shards_per_task)


def all_shards(count: int) -> tuple[Shard, ...]:
    """Return all shards of a split."""
    return tuple(Shard(index, count) for index in range(count))


def count_tasks(num_shards: int, shards_per_task: int) -> int:
    """Return the number of array tasks for `num_shards` shards, `shards_per_task` each; the last may have fewer."""
    return math.ceil(num_shards / shards_per_task)


def task_shards(task: int, num_shards: int, shards_per_task: int) -> tuple[Shard, ...]:
    """Return the shards of one array task: tK to tK + K − 1 for task t and K = `shards_per_task`.

    Raises:
      UserError: the task number is too large, so that no shard is left for it.
    """
    tasks = count_tasks(num_shards, shards_per_task)
    if task >= tasks:
        each = f" with --shards-per-task {shards_per_task}" if shards_per_task > 1 else ""
        raise UserError(
            f"{_TASK_VARIABLE}={task} is too large: --num-shards {num_shards}{each} needs {tasks} tasks. Pass "
            f"--array=0-{tasks - 1}"
        )
    first = task * shards_per_task
    return tuple(Shard(index, num_shards) for index in range(first, min(first + shards_per_task, num_shards)))


def split(total: int, *shards: Shard) -> range:
    """Return the items of adjacent shards: a contiguous range of `total` items; shard sizes differ by at most one."""
    first, last = shards[0], shards[-1]
    return range(total * first.index // first.count, total * (last.index + 1) // last.count)


def _shard_of_array(environment: Mapping[str, str]) -> Shard | None:
    """Return the shard of this task of a SLURM array; None outside an array.

    In a sparse array the position of a task is not known: `1-9:4,20` has COUNT 4, MIN 1, MAX 20 and STEP 4.

    Raises:
      UserError: the array is not 0-(N−1), so that the task number does not determine the shard.
    """
    if _TASK_VARIABLE not in environment:
        return None
    names = {key: f"SLURM_ARRAY_TASK_{key}" for key in ("ID", "COUNT", "MIN", "MAX", "STEP")}
    given = {key: environment[name] for key, name in names.items() if name in environment}
    found = " ".join(f"{names[key]}={value}" for key, value in given.items())
    if "COUNT" not in given or not all(re.fullmatch(r"\d+", value) for value in given.values()):
        raise UserError(f"cannot determine the shard from {found}: pass --num-shards N, or --shard I/N")
    numbers = {key: int(value) for key, value in given.items()}
    last = numbers["COUNT"] - 1
    is_contiguous = numbers.get("MIN", 0) == 0 and numbers.get("MAX", last) == last and numbers.get("STEP", 1) == 1
    if not is_contiguous or numbers["ID"] > last:
        raise UserError(
            f"expected a job array 0-(N-1), such as --array=0-{max(last, 0)}, whose task numbers are shards; "
            f"found {found}. To rerun single tasks, pass --num-shards N, or submit the same array (finished parts are "
            "skipped)"
        )
    return Shard(numbers["ID"], numbers["COUNT"])


def _task_number(text: str) -> int:
    if not re.fullmatch(r"\d+", text):
        raise UserError(f"{_TASK_VARIABLE} must be a whole number; found {text!r}: pass --shard I/N")
    return int(text)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Interrupted` in the main thread when SIGTERM, SIGUSR1 or SIGINT arrives.

    Signals within the next seconds count as repetitions and are ignored, so that they disturb neither the cleanup nor
    the report. A later signal raises again, in case a library caught the first exception. The previous handlers are
    restored at the end of the block; after an interruption, once no repetition is expected. A signal that was ignored
    when the command started (`nohup`, Ctrl-C of a background job) stays ignored. Outside the main thread, where Python
    cannot handle signals, this does nothing.

    Raises:
      Interrupted: inside the block, on a signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    taken = [number for number in SIGNALS if before[number] is not signal.SIG_IGN]

    def restore(number: int) -> None:
        signal.signal(number, before[signal.Signals(number)] or signal.SIG_DFL)

    def restore_unless_repeated(number: int, frame: FrameType | None) -> None:
        if not _is_repetition():
            restore(number)
            signal.raise_signal(number)

    interrupted = False
    try:
        for number in taken:
            signal.signal(number, _interrupt)
        yield
    except Interrupted:
        interrupted = True
        raise
    finally:
        for number in taken:
            if interrupted:
                signal.signal(number, restore_unless_repeated)
            else:
                restore(number)


def ignore_signals() -> None:
    """Ignore further signals while a command reports an interruption, so that none changes its exit code."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _interrupted_at
    if _is_repetition():
        return
    _interrupted_at = time.monotonic()
    raise Interrupted(
        f"stopped by {signal.Signals(number).name}: committed work is kept, and the same command resumes there"
    )


def _is_repetition() -> bool:
    return time.monotonic() - _interrupted_at < _REPETITION_SECONDS
