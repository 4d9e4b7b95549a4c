"""Keep the output of transformers off the terminal; the command line draws its own progress."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from transformers.utils import logging


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
