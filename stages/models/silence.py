"""Keep the output of transformers off the terminal; the command line draws its own progress.

What is silenced belongs to the whole process. While rollouts are sampled beside training, two threads load models:
each silence then lasts from the first thread that enters it to the last one that leaves it.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout, suppress
from functools import wraps

from transformers.utils import logging


def _shared(
    make: Callable[[], AbstractContextManager[None]],
) -> Callable[[], AbstractContextManager[None]]:
    """Return a context manager for any number of threads: the first enters `make()`, the last leaves it."""
    turn, inside, entered = threading.Lock(), [0], ExitStack()

    @contextmanager
    @wraps(make)
    def shared() -> Iterator[None]:
        with turn:
            if not inside[0]:
                entered.enter_context(make())
            inside[0] += 1
        try:
            yield
        finally:
            with turn:
                inside[0] -= 1
                if not inside[0]:
                    entered.close()

    return shared


@_shared
@contextmanager
def silenced_transformers() -> Iterator[None]:
    """Silence progress bars and reports of transformers, and anything printed to stdout, inside the block.

    stdout is redirected because accelerate, which transformers imports, prints while it probes for DeepSpeed.
    """
    had_progress_bar, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if had_progress_bar:
            logging.enable_progress_bar()


@_shared
@contextmanager
def silenced_descriptors() -> Iterator[None]:
    """Discard what native code prints inside the block: the tokenizers library prints keys of a file as they are."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # a full disk is reported by whoever prints results
            stream.flush()
    kept = [os.dup(number) for number in (1, 2)]
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(null, number)
        yield
    finally:
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        os.close(null)
