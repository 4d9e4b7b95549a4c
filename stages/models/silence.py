"""Owns silence: what transformers prints while it reads and writes models stays off the terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


@contextmanager
def quietly() -> Iterator[None]:
    """Keep the progress bars and reports of transformers off the terminal: drawing is the surface's business.

    Nor may what it imports print: accelerate looks for DeepSpeed where that is installed.
    """
    from transformers.utils import logging

    were_on, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if were_on:
            logging.enable_progress_bar()
