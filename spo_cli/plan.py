"""`spo plan`: print the predicted tokens, seconds, files and memory of a run."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from spo_cli.console import print_line, print_results
from stages.configs.plan import Config
from stages.core.progress import Progress, Silent
from stages.models.memory import Memory
from stages.pipeline import prediction
from stages.pipeline.prediction import Amounts, Prediction

_COLUMNS = ("prefilled", "sampled", "trained", "seconds", "bytes")


def run(config: Config, progress: Progress = Silent()) -> Prediction:
    """Predict a run. Raises as `stages.pipeline.prediction.run`."""
    return prediction.run(config, progress)


def report(result: Prediction) -> None:
    """Print a prediction."""
    if result.config.json:
        return print_line(json.dumps(_figures(result), indent=2))
    print_results(Text.assemble(("spo plan", "bold"), f" → {result.out}: {result.iterations} iterations"), Text())
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("stage", "times", *_COLUMNS):
        table.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    for one in result.stages:
        table.add_row(one.stage, str(one.times), *_cells(one.total))
    table.add_row(Text("all", "bold"), "", *_cells(result.total))
    print_results(table, Text())
    wall = sum(one.total.seconds / one.devices for one in result.stages)
    if not math.isnan(wall):
        workers = max(one.devices for one in result.stages)
        beside = f" on {workers} workers" if workers > 1 else ""
        print_results(
            Text(f"{_duration(wall)}{beside}; {result.total.seconds:,.0f} worker-seconds (GPU-seconds on GPUs)")
        )
    for name, memory in (("a sampler", result.sampling), ("a trainer", result.training)):
        if memory:
            print_results(Text(f"memory of {name}: {_describe(memory)}"))
    if not result.sampling:
        print_results(Text("memory: unknown, the model is not in a directory on this machine"))
    print_results(*(Text(line) for line in result.notes))
    return None


def _figures(result: Prediction) -> dict[str, Any]:
    """Return the prediction as JSON has it; figures that are not known are null."""
    memory = {
        name: one.parts if one else None for name, one in (("sampler", result.sampling), ("trainer", result.training))
    }
    return {
        "out": result.out,
        "iterations": result.iterations,
        "stages": [
            {"stage": one.stage, "times": one.times, "workers": one.devices, "each": _known(one.each)}
            for one in result.stages
        ],
        "total": _known(result.total),
        "memory_bytes": memory,
        "notes": list(result.notes),
    }


def _known(amounts: Amounts) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in asdict(amounts).items()}


def _cells(amounts: Amounts) -> list[str]:
    return [_amount(name, getattr(amounts, name)) for name in _COLUMNS]


def _amount(name: str, value: float) -> str:
    """Return a figure in at most nine characters; `?` where it is unknown, nothing where it is 0."""
    if math.isnan(value):
        return "?"
    if not value:
        return ""
    if name == "bytes":
        return _size(value)
    if value >= 1e7:
        return f"{value / 1e6:,.1f}M"
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _size(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _describe(memory: Memory) -> str:
    parts = ", ".join(f"{name} {_size(size)}" for name, size in memory.parts.items())
    return f"{_size(memory.total)} ({parts})"
