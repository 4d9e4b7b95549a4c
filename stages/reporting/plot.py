"""`spo plot`: draw learning curves of several runs as one figure, with bands over seeds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.configs.plot import Axis, Config
from stages.core.errors import UserError
from stages.core.paths import as_path
from stages.core.progress import Progress, Silent, Summary
from stages.reporting import curves
from stages.reporting.canvas import COLORS, new_figure, save
from stages.reporting.sources import START, find

LABELS: dict[Axis, str] = {
    "iteration": "iteration",
    "sampled": "tokens sampled",
    "trained": "tokens trained",
    "seconds": "seconds",
}


class Curve(NamedTuple):
    """A learning curve.

    Attributes:
      x, y: float64 [N].
      spread: float64 [N], standard error of y; NaN where it is not known.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    spread: NDArray[np.float64]


def run(config: Config, progress: Progress = Silent()) -> Summary:
    """Draw one curve per argument, in one panel per axis.

    Raises:
      UserError: a path is no run, a run lacks the figure, or matplotlib is not installed.
    """
    started = time.monotonic()
    points = [[_read(path) for path in argument.split(",")] for argument in config.runs]
    labels = config.label or tuple(_name(argument) for argument in config.runs)
    figure = new_figure(len(config.x))
    for panel, axis in zip(figure.subplots(1, len(config.x), squeeze=False)[0], config.x, strict=True):
        for i, (seeds, label) in enumerate(zip(points, labels, strict=True)):
            curve = average([series(one, axis, config.y) for one in seeds])
            if not curve.y.size:
                raise UserError(f"{config.runs[i]} has no {config.y} to draw; see spo show {config.runs[i]}")
            color, spread = COLORS[i % len(COLORS)], np.nan_to_num(curve.spread)
            panel.plot(curve.x, curve.y, "o-", markersize=3, color=color, label=label)
            panel.fill_between(curve.x, curve.y - spread, curve.y + spread, color=color, alpha=0.2, linewidth=0)
        panel.set(xlabel=LABELS[axis], ylabel=config.y)
        panel.legend(frameon=False)
    save(figure, config.out)
    return Summary("plot", str(config.out), rows=sum(map(len, points)), seconds=time.monotonic() - started)


def series(points: Sequence[dict[str, Any]], axis: Axis, name: str) -> Curve:
    """Return one figure of the iterations of a run.

    A figure of an iteration belongs to the tokens and seconds before its update, except an accuracy, which is measured
    after it.

    Args:
      points: as `stages.reporting.curves.iterations` returns them.
      axis: `iteration`, or what is summed over the iterations; evaluations and the warm start are left out of the sums.
      name: of the figure.
    """
    found: list[tuple[float, float, float]] = []
    total = 0.0
    for point in points:
        stages = [cost for stage, cost in point["stages"].items() if stage not in ("eval", "sft")]
        after = total + sum(cost.get(axis, 0) for cost in stages)
        measured_after = name == "accuracy" and point["iteration"] != START
        value = point.get(name)
        if value not in (None, []):
            mean, *error = value if isinstance(value, list) else [value]
            place = point["iteration"] + measured_after if axis == "iteration" else after if measured_after else total
            found.append((max(float(place), 0.0), mean, error[0] if error else np.nan))
        total = after
    return Curve(*np.array(found, np.float64).reshape(-1, 3).T)


def average(seeds: Sequence[Curve]) -> Curve:
    """Return the mean curve of several seeds and its standard error; a single curve is returned unchanged.

    Seeds of different lengths are compared up to the shortest.
    """
    if len(seeds) == 1:
        return seeds[0]
    length = min(curve.y.size for curve in seeds)
    x, y = (np.stack([getattr(curve, name)[:length] for curve in seeds]) for name in ("x", "y"))
    return Curve(x.mean(axis=0), y.mean(axis=0), y.std(axis=0, ddof=1) / np.sqrt(len(seeds)))


def _read(path: str) -> list[dict[str, Any]]:
    return curves.iterations(find([as_path(path)]))


def _name(argument: str) -> str:
    first, *others = [as_path(path).resolve().name for path in argument.split(",")]
    return f"{first} ({len(others) + 1} seeds)" if others else first
