"""Limit the time of a call whose code comes from a file: a chat template may loop for hours."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from stages.core.errors import UserError


@contextmanager
def time_limit(seconds: float, what: str) -> Iterator[None]:
    """Raise inside the block when it takes too long; only in the main thread, where Python handles signals.

    Args:
      what: what the block does, for the message: "the chat template".

    Raises:
      UserError: the block ran longer than `seconds`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise UserError(f"{what} takes longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
