"""Draw the figures of an audit with matplotlib: calibration, error against N, signs, and the mask against ρ."""

from __future__ import annotations

import io
from typing import Any

from stages.core.errors import UserError
from stages.core.paths import AnyPath
from stages.core.storage import write_atomically
from stages.shards.disk import disk_errors

_BLUE, _ORANGE, _GREEN, _GRAY = "#0072B2", "#D55E00", "#009E73", "#999999"  # distinct for every kind of color vision


def draw(figures: dict[str, Any], path: AnyPath) -> None:
    """Write the figures of `stages.reporting.audit.measure` as PNG, SVG or PDF, by the end of the file name.

    Raises:
      UserError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # optional: the extra plot
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("--figure: matplotlib is not installed; pip install 'spo-cli[plot]'") from error
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    bins, by_rollouts, mask = figures["calibration"], figures["by_rollouts"], figures["mask"]
    left.plot([0, 1], [0, 1], color=_GRAY, linewidth=1)
    value = [one["reference"] for one in bins]
    spread = [[one["reference"] - one["low"] for one in bins], [one["high"] - one["reference"] for one in bins]]
    left.errorbar([one["estimate"] for one in bins], value, spread, fmt="o", color=_BLUE, capsize=2)
    left.set(title="Calibration", xlabel="recorded value", ylabel="mean of the reference rollouts")
    count = [one["rollouts"] for one in by_rollouts]
    for name, label, color in (("absolute", "mean error of V", _BLUE), ("right", "right signs of A", _ORANGE)):
        middle.plot(count, [one.get(name) for one in by_rollouts], "o-", label=label, color=color)
    middle.set(title="Rollouts per state", xlabel="N", xscale="log", xticks=count, ylim=(0, 1))
    middle.set_xticklabels([str(one) for one in count])
    middle.minorticks_off()
    for name, label, color in (("advantage", "of |advantage|", _GREEN), ("tokens", "of tokens", _BLUE)):
        right.plot([one["rho"] for one in mask], [one[name] for one in mask], "o-", label=label, color=color)
    right.set(title="Mask p < ρ", xlabel="ρ", ylabel="share", ylim=(0, 1.02))
    for axes in (middle, right):
        axes.legend(frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:], dpi=160, metadata={"Date": None} if path.suffix == ".svg" else None)
    with disk_errors(path):
        write_atomically(path, content.getvalue())
