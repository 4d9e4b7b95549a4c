"""Figures of matplotlib, the extra `plot`: made without a display, saved with reproducible bytes."""

from __future__ import annotations

import io
from typing import Any

from stages.core.errors import UserError
from stages.core.paths import AnyPath
from stages.core.storage import write_atomically
from stages.shards.disk import disk_errors

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colors that differ for every kind of color vision (Okabe and Ito)."""


def new_figure(panels: int) -> Any:
    """Return an empty figure for panels side by side.

    Raises:
      UserError: matplotlib is not installed.
    """
    return _matplotlib().figure.Figure(figsize=(0.4 + 3.6 * panels, 3.2), layout="constrained")


def save(figure: Any, path: AnyPath) -> None:
    """Write a figure as PNG, SVG or PDF, by the end of the file name."""
    content = io.BytesIO()
    no_time = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix)
    with _matplotlib().rc_context({"svg.hashsalt": "spo"}):  # else the ids of elements are random
        figure.savefig(content, format=path.suffix[1:], dpi=160, metadata=no_time)
    with disk_errors(path):
        write_atomically(path, content.getvalue())


def _matplotlib() -> Any:
    try:
        import matplotlib.figure
    except ImportError as error:
        raise UserError("matplotlib is not installed: pip install 'spo-cli[plot]'") from error
    return matplotlib
