"""Limits on time that hold on a machine of any speed: processor time, against that of a fixed piece of Python."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_FIXED_SECONDS = 0.05
"""What the fixed piece takes on the machine that the limits were written on."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail where the block takes more processor time of this process than a proportional share of `seconds`."""
    pace = measure_pace()
    began = time.process_time()
    yield
    took = time.process_time() - began
    limit = seconds * max(1.0, pace, measure_pace())  # measured on both sides: the load may change
    assert took < limit, f"{took:.2f} s of processor time, of {limit:.2f}"


def measure_pace() -> float:
    """How many times slower than that machine this one is now."""
    return processor_seconds(_fixed_piece) / _FIXED_SECONDS


def processor_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _fixed_piece() -> int:
    total = 0
    for number in range(500_000):
        total = (total * 31 + number) % 1_000_003
    return total
