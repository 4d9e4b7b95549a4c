"""Time limits that hold on a machine of any speed: they scale with the processor time of a reference workload."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_REFERENCE_SECONDS = 0.05
"""Processor time of the reference workload on the machine for which the limits were chosen."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail if the block takes more processor time than `seconds`, scaled up on a machine slower than the reference."""
    pace = measure_pace()
    began = time.process_time()
    yield
    took = time.process_time() - began
    limit = seconds * max(1.0, pace, measure_pace())  # measured before and after: the load may change
    assert took < limit, f"took {took:.2f} s of processor time, limit {limit:.2f} s"


def measure_pace() -> float:
    """Return how many times slower this machine is now than the reference machine."""
    return processor_seconds(_reference_workload) / _REFERENCE_SECONDS


def processor_seconds(work: Callable[[], object]) -> float:
    """Return the processor time of this process that `work` takes, in seconds."""
    began = time.process_time()
    work()
    return time.process_time() - began


def _reference_workload() -> int:
    total = 0
    for number in range(500_000):
        total = (total * 31 + number) % 1_000_003
    return total
