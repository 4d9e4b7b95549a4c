"""Show a run in the terminal: one row per iteration, a sparkline per figure, and what each stage cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from spo_cli.console import number
from stages.reporting import curves
from stages.reporting.changes import find_changes
from stages.reporting.sources import START, Found

Point = dict[str, Any]
"""The figures of one iteration (`stages.reporting.curves.iterations`), with `changed`: [learned, forgotten]."""

_BARS = "▁▂▃▄▅▆▇█"
_MOST_BARS = 48
_FIGURES = ("reward", "accuracy", "entropy", "kl", "length")
_NAMES = {"kl": "KL"}
_COSTS = {
    "prefilled": "prefilled",
    "sampled": "sampled",
    "trained": "trained",
    "seconds": "seconds",
    "wall_seconds": "wall s",
    "gpu_seconds": "GPU s",
}
"""Figure → heading of its column."""
COST_NOTES = (
    "seconds: work of all calls on all parts, killed ones too, with loading and saving; wall s: while one worked",
    "GPU s: seconds times GPUs; CPU: none was used; empty: not recorded",
)


def read_points(found: Found) -> list[Point]:
    """Return the figures of every iteration of a run, with the number of questions learned and forgotten."""
    changes = find_changes(found)
    points = curves.iterations(found)
    for point in points:
        if one := changes.get((point["run"], point["iteration"])):
            point["changed"] = [len(one.learned), len(one.forgotten)]
    return points


def draw_curve(points: Sequence[Point]) -> list[RenderableType]:
    """Return a sparkline of each figure, and a table with one row per iteration."""
    table = _table("iter", "reward", "accuracy", "entropy", "KL", "tokens", "seconds", "changed")
    for point in points:
        costs = point["stages"].values()
        table.add_row(
            iteration_name(point["iteration"]),
            _mean(point.get("reward")),
            _mean(point.get("accuracy")),
            _number(point.get("entropy")),
            _number(point.get("kl"), digits=2),
            _amount(sum(cost.get("sampled", 0) for cost in costs)),
            _amount(sum(cost.get("seconds", 0) for cost in costs)),
            "{:+} {:+}".format(point["changed"][0], -point["changed"][1]) if "changed" in point else "",
        )
    return [_sparklines(points), Text(), table]


def draw_costs(points: Sequence[Point]) -> RenderableType:
    """Return a table with the tokens and times of each stage of each iteration, and their sums."""
    table = _table("iteration", "stage", *_COSTS.values())
    costs = [cost for point in points for cost in point["stages"].values()]
    for point in points:
        for stage, cost in point["stages"].items():
            table.add_row(iteration_name(point["iteration"]), stage, *_costs(cost))
    totals = {name: sum(cost[name] for cost in costs if name in cost) for name in _COSTS if _is_known(name, costs)}
    table.add_row(Text("all", "bold"), "", *_costs(totals))
    return table


def _is_known(name: str, costs: Sequence[dict[str, float]]) -> bool:
    """Return whether the sum of a figure is known: of GPU-seconds, only if every stage records them."""
    return all(name in cost for cost in costs) if name == "gpu_seconds" else any(name in cost for cost in costs)


def _costs(cost: Mapping[str, float]) -> list[str]:
    """Return the cells of a stage."""
    return ["CPU" if name == "gpu_seconds" and cost.get(name) == 0 else _amount(cost.get(name, 0)) for name in _COSTS]


def sparkline(values: Sequence[float], width: int = _MOST_BARS) -> str:
    """Return one bar per value, from the smallest to the largest; of more than `width` values, means of neighbors."""
    known = [value for value in values if math.isfinite(value)]
    if len(known) > width:
        bounds = [len(known) * i // width for i in range(width + 1)]
        known = [sum(known[a:b]) / (b - a) for a, b in pairwise(bounds)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    if low == high:
        return _BARS[3] * len(known)
    return "".join(_BARS[round((value - low) / (high - low) * (len(_BARS) - 1))] for value in known)


def iteration_name(iteration: int) -> str:
    """Return the name of an iteration's directory."""
    return "start" if iteration == START else f"{iteration:03d}"


def _sparklines(points: Sequence[Point]) -> Table:
    table = _table("", "first", "", "last")
    table.show_header = False
    for name in _FIGURES:
        values = [_first(point[name]) for point in points if point.get(name) not in (None, [])]
        if len(values) > 1:
            table.add_row(
                Text(_NAMES.get(name, name), "cyan"), number(values[0]), sparkline(values), number(values[-1])
            )
    return table


def _table(*names: str) -> Table:
    """Return an empty table whose cells are never folded: a number must stay on one line."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in names:
        table.add_column(name, justify="left" if name in ("iter", "iteration", "stage", "") else "right", no_wrap=True)
    return table


def _first(value: float | Sequence[float]) -> float:
    return value if isinstance(value, int | float) else value[0]


def _mean(value: Sequence[float] | None) -> str:
    """Return a mean with its standard error, such as `0.379±0.015`."""
    return "±".join(f"{one:.3f}" for one in value or ())


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}g}"


def _amount(value: float) -> str:
    """Return a count or a number of seconds in at most seven characters: `6.3`, `25,455`, `1.24M`."""
    if not value:
        return ""
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:,.0f}" if value >= 100 or float(value).is_integer() else f"{value:.1f}"
