"""Owns which slices of the work this process does (`--shard`, SLURM arrays) and how a signal ends it."""

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

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Preemption, the time limit, Ctrl-C."""

_PATIENCE = 5.0
"""Seconds in which further signals are taken for echoes of the first (schedulers send several)."""

_interrupted_at = -math.inf


@dataclass(frozen=True)
class Shard:
    """Slice `index` of `count`, counted from 0.

    Raises:
      UserError: an index outside 0 … count − 1.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UserError(
                f"shard {self} does not exist: shards count from 0, so {self.count} of them are 0/{self.count} to "
                f"{self.count - 1}/{self.count}"
                if self.count > 0
                else f"shard {self}: the number of shards must be at least 1"
            )

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_shard(text: str) -> Shard:
    """`"3/8"` → the fourth of eight.

    Raises:
      UserError: text of another form, or an index outside the count.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if not match:
        raise UserError(f"--shard must be I/N counted from 0, such as 0/8 … 7/8; got {text!r}")
    return Shard(int(match[1]), int(match[2]))


class ShardOptions(Protocol):
    """What the command line says of the shards (`stages.configs.shared.OutputOptions`)."""

    @property
    def shard(self) -> str | None: ...
    @property
    def num_shards(self) -> int | None: ...
    @property
    def shards_per_task(self) -> int: ...


def resolve_shards(asked: ShardOptions, environment: Mapping[str, str] = os.environ) -> tuple[Shard, ...]:
    """The shards of this process, adjacent and in order.

    What `--shard` says. Else, of `--num-shards` N with `--shards-per-task` K: those of this task of a SLURM array,
    tK to tK + K − 1, which holds for any task of any array; outside an array all N. Else the array alone decides, if it
    is written 0 to N−1; else the whole (0/1).

    Raises:
      UserError: options that exclude each other, or an array whose task numbers do not fit.
    """
    if asked.shard is not None and asked.num_shards is not None:
        raise UserError(f"--shard {asked.shard} says it all: leave out --num-shards {asked.num_shards}, or --shard")
    if asked.shards_per_task > 1 and asked.num_shards is None:
        raise UserError(f"--shards-per-task {asked.shards_per_task} needs the number of shards: pass --num-shards N")
    if asked.shard is not None:
        return (parse_shard(asked.shard),)
    if asked.num_shards is None:
        return (_shard_of_array(environment) or Shard(0, 1),)
    task = environment.get(_TASK)
    if task is None:
        return tuple(Shard(index, asked.num_shards) for index in range(asked.num_shards))
    return task_shards(_task_number(task), asked.num_shards, asked.shards_per_task)


def count_tasks(num_shards: int, shards_per_task: int) -> int:
    """Tasks of the array that does `num_shards`, each `shards_per_task` of them; the last may have fewer."""
    return math.ceil(num_shards / shards_per_task)


def task_shards(task: int, num_shards: int, shards_per_task: int) -> tuple[Shard, ...]:
    """The shards of one task of an array: tK to tK + K − 1.

    Raises:
      UserError: a task that no shard is left for.
    """
    tasks = count_tasks(num_shards, shards_per_task)
    if task >= tasks:
        each = f" with --shards-per-task {shards_per_task}" if shards_per_task > 1 else ""
        raise UserError(
            f"{_TASK}={task} is beyond --num-shards {num_shards}{each}, the work of {tasks} tasks: write --array=0-"
            f"{tasks - 1}"
        )
    first = task * shards_per_task
    return tuple(Shard(index, num_shards) for index in range(first, min(first + shards_per_task, num_shards)))


def split(total: int, *shards: Shard) -> range:
    """The slice of `total` items that adjacent shards have: contiguous, in order, sizes that differ by at most one."""
    first, last = shards[0], shards[-1]
    return range(total * first.index // first.count, total * (last.index + 1) // last.count)


_TASK = "SLURM_ARRAY_TASK_ID"


def _shard_of_array(environment: Mapping[str, str]) -> Shard | None:
    """The task of a SLURM array as a shard; None outside an array.

    A sparse array does not say which of its tasks this is: `1-9:4,20` has COUNT 4, MIN 1, MAX 20 and STEP 4.

    Raises:
      UserError: an array not written as 0-(N−1): its task number says nothing about which slice it is.
    """
    if _TASK not in environment:
        return None
    names = {key: f"SLURM_ARRAY_TASK_{key}" for key in ("ID", "COUNT", "MIN", "MAX", "STEP")}
    given = {key: environment[name] for key, name in names.items() if name in environment}
    told = " ".join(f"{names[key]}={value}" for key, value in given.items())
    if "COUNT" not in given or not all(re.fullmatch(r"\d+", value) for value in given.values()):
        raise UserError(f"cannot tell the shard from {told}: pass --num-shards N, or --shard I/N")
    numbers = {key: int(value) for key, value in given.items()}
    last = numbers["COUNT"] - 1
    whole = numbers.get("MIN", 0) == 0 and numbers.get("MAX", last) == last and numbers.get("STEP", 1) == 1
    if not whole or numbers["ID"] > last:
        raise UserError(
            f"a job array must be written 0-(N-1), such as --array=0-{max(last, 0)}, for its tasks to be shards; "
            f"found {told}. To run only some tasks again, pass --num-shards N, or submit the same array (finished "
            "parts are skipped)"
        )
    return Shard(numbers["ID"], numbers["COUNT"])


def _task_number(text: str) -> int:
    if not re.fullmatch(r"\d+", text):
        raise UserError(f"{_TASK} must be the number of a task; found {text!r}: pass --shard I/N")
    return int(text)


@contextmanager
def interruptible() -> Iterator[None]:
    """Turns SIGTERM, SIGUSR1 and SIGINT into `Interrupted`, raised in the main thread at once.

    Signals within the next seconds are taken for echoes and disturb neither the cleaning up nor the report; a later one
    raises again, for the case that a library swallowed the first. The handlers of before come back at the end of the
    block, or, if it was interrupted, once no echo is to be expected. A signal that was ignored when the command
    started (`nohup`, a background job's Ctrl-C) stays ignored. Off the main thread, where Python takes no signals, this
    does nothing.

    Raises:
      Interrupted: inside the block.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    taken = [number for number in SIGNALS if before[number] is not signal.SIG_IGN]

    def restore(number: int) -> None:
        signal.signal(number, before[signal.Signals(number)] or signal.SIG_DFL)

    def restore_after_echoes(number: int, frame: FrameType | None) -> None:
        if not _is_echo():
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
                signal.signal(number, restore_after_echoes)
            else:
                restore(number)


def ignore_signals() -> None:
    """For a command that reports an interruption and exits: no echo may change its exit code, even at the very end."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _interrupted_at
    if _is_echo():
        return
    _interrupted_at = time.monotonic()
    raise Interrupted(
        f"stopped by {signal.Signals(number).name}: what was committed is kept, and the same command resumes there"
    )


def _is_echo() -> bool:
    return time.monotonic() - _interrupted_at < _PATIENCE
