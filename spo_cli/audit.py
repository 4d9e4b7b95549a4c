"""`spo audit`: print how good the estimated values and advantages of an artefact are."""

from __future__ import annotations

import json
from typing import Any

from rich.table import Table
from rich.text import Text

from spo_cli.console import print_line, print_results
from stages.configs.audit import Config
from stages.core.progress import Progress, Silent
from stages.reporting import audit
from stages.reporting.audit import Audit

_GRADIENT = ("tokens", "variance", "at_equal_tokens", "relative", "noise")
"""Figures of a method that are printed."""


def run(config: Config, progress: Progress = Silent()) -> Audit:
    """Audit the advantages. Raises as `stages.reporting.audit.run`."""
    return audit.run(config, progress)


def report(result: Audit) -> None:
    """Print the figures of an audit."""
    figures = result.figures
    if result.config.json:
        return print_line(json.dumps(figures, indent=2))
    head = (
        f"{figures['states']:,} states and {figures['segments']:,} segments of {figures['responses']:,} responses, "
        f"{figures['rollouts']:,} reference rollouts each"
    )
    print_results(Text.assemble(("spo audit", "bold"), f" → {result.out}"), Text(head), Text())
    if figures["calibration"]:
        print_results(_table("recorded value", "reference", "95 % interval", "states", rows=_calibration(figures)))
    rows = [[str(one["rollouts"]), *_error_cells(one)] for one in figures["by_rollouts"]]
    rows.append([f"recorded ({figures['recorded']['rollouts']:.3g})", *_error_cells(figures["recorded"])])
    print_results(_table("rollouts N", "error of V", "rank", "right sign", "zero", "wrong", rows=rows))
    mask = [[f"{one['rho']:g}", _percent(one["tokens"]), _percent(one["advantage"])] for one in figures["mask"]]
    print_results(_table("mask p < ρ", "of tokens", "of |advantage|", rows=mask))
    if figures.get("gradients"):
        rows = [[one["method"], *(_number(one[name]) for name in _GRADIENT)] for one in figures["gradients"]]
        print_results(
            _table("gradient", "tokens", "variance", "at equal tokens", "relative", "noise/signal", rows=rows)
        )
    spent = figures["spent"]
    if spent["rollouts"]:
        share = _percent(spent["where_the_value_cannot_move"] / spent["rollouts"])
        print_results(Text(f"{share} of the {spent['rollouts']:,} recorded rollouts started where every reward agrees"))
    return None


def _calibration(figures: dict[str, Any]) -> list[list[str]]:
    return [
        [
            f"{one['estimate']:.3f}",
            f"{one['reference']:.3f}",
            f"{one['low']:.3f}–{one['high']:.3f}",
            f"{one['states']:,.0f}",
        ]
        for one in figures["calibration"]
    ]


def _error_cells(one: dict[str, Any]) -> list[str]:
    if "absolute" not in one:
        return [""] * 5
    rank = "–" if one["rank"] is None else f"{one['rank']:.3f}"
    return [f"{one['absolute']:.3f}", rank, *(_percent(one[name]) for name in ("right", "zero", "wrong"))]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if abs(value) < 1e5 else f"{value:.2e}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _table(*names: str, rows: list[list[str]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    table.add_row()
    return table
