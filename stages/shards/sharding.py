"""Owns which slice of the work this process does (`--shard`, SLURM arrays) and how a signal ends it."""

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

from stages.errors import Interrupted, UserError

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


def shard_from_environment(environment: Mapping[str, str] = os.environ) -> Shard | None:
    """The task of a SLURM array as a shard; None outside an array.

    Raises:
      UserError: an array not written as 0-(N−1): its task number says nothing about which slice it is.
    """
    names = {key: f"SLURM_ARRAY_TASK_{key}" for key in ("ID", "COUNT", "MIN", "MAX", "STEP")}
    if names["ID"] not in environment:
        return None
    given = {key: environment[name] for key, name in names.items() if name in environment}
    told = " ".join(f"{names[key]}={value}" for key, value in given.items())
    if "COUNT" not in given or not all(re.fullmatch(r"\d+", value) for value in given.values()):
        raise UserError(f"cannot tell the shard from {told}: pass --shard I/N")
    numbers = {key: int(value) for key, value in given.items()}
    last = numbers["COUNT"] - 1
    whole = numbers.get("MIN", 0) == 0 and numbers.get("MAX", last) == last and numbers.get("STEP", 1) == 1
    if not whole or numbers["ID"] > last:
        raise UserError(
            f"a job array must be written 0-(N-1), such as --array=0-{max(last, 0)}, for its tasks to be shards; "
            f"found {told}. To run only some tasks again, submit the same array (finished parts are skipped) "
            f"or pass --shard I/N"
        )
    return Shard(numbers["ID"], numbers["COUNT"])


def resolve(shard: str | None) -> Shard:
    """What `--shard` says, else the SLURM array, else the whole (0/1)."""
    return parse_shard(shard) if shard is not None else shard_from_environment() or Shard(0, 1)


def split(total: int, shard: Shard) -> range:
    """The shard's slice of `total` items: contiguous, in order, sizes that differ by at most one."""
    return range(total * shard.index // shard.count, total * (shard.index + 1) // shard.count)


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
