"""Draw the figures of an audit with matplotlib: calibration, error against N, signs, and the mask against ρ."""

from __future__ import annotations

from typing import Any

from stages.core.paths import AnyPath
from stages.reporting.canvas import COLORS, new_figure, save

_BLUE, _ORANGE, _GREEN = COLORS[:3]
_GRAY = "#999999"


def draw(figures: dict[str, Any], path: AnyPath) -> None:
    """Write the figures of `stages.reporting.audit.measure` as PNG, SVG or PDF, by the end of the file name.

    Raises:
      UserError: matplotlib is not installed, or the file cannot be written.
    """
    figure = new_figure(3)
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
    save(figure, path)
