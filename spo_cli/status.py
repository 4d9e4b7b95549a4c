"""`spo status`, and what it prints: a line for each stage of each iteration, and the last words of what is not done."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.table import Table
from rich.text import Text

from spo_cli.console import print_line, print_notes, print_results
from stages.configs.status import Config
from stages.core.progress import Progress, Silent
from stages.pipeline import status
from stages.slurm.states import WORK_STATES, PartProgress, StageProgress, WorkState, count_states

_STYLE: dict[WorkState, str] = {"done": "green", "running": "cyan", "queued": "blue", "failed": "red", "missing": "dim"}
_TOLD = 6  # parts of one state of one stage whose last line is shown

_USUAL = {"Dependency", "Resources", "Priority", ""}  # of what waits, not worth a line


@dataclass(frozen=True)
class Shown:
    """A status, and how it is printed."""

    status: status.Status
    json: bool


def run(config: Config, progress: Progress = Silent()) -> Shown:
    """As `stages.pipeline.status.run`."""
    return Shown(status.run(config, progress), config.json)


def report(shown: Shown) -> None:
    """Prints the state of a run."""
    found = shown.status
    if shown.json:
        return print_line(json.dumps(_plain(found), indent=2, ensure_ascii=False))
    total = sum(len(stage.parts) for stage in found.stages)
    amounts = [f"{count:,} {state}" for state, count in count_states(found.stages).items() if count]
    print_results(Text.assemble((str(found.run), "bold"), f"  {', '.join(amounts)}, of {total:,} parts and models"))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("iteration", "stage"):
        table.add_column(name)
    for name in (*WORK_STATES, "parts"):
        table.add_column(name, justify="right")
    for row in _rows(found.stages):
        table.add_row(*row)
    print_results(table)
    for line in _last_words(found.stages):
        print_line(line)
    if found.problem:
        print_notes([found.problem])
    return None


def _rows(stages: tuple[StageProgress, ...]) -> Iterator[list[Text]]:
    """A row for each stage; iterations that are wholly done, or not begun, stand together."""
    iterations = [list(group) for _, group in groupby(stages, key=lambda stage: stage.work.iteration)]
    for alike, group in groupby(iterations, key=_alike):
        run = list(group)
        if not alike:
            yield from (_row(stage) for one in run for stage in one)
            continue
        first, last = run[0][0].work.iteration, run[-1][0].work.iteration
        name = first if first == last else f"{first}–{last}"
        amounts = count_states([stage for one in run for stage in one])
        yield [Text(name), Text("all stages"), *_numbers(amounts)]


def _alike(stages: list[StageProgress]) -> WorkState | None:
    """`done` or `missing` where that is all that there is."""
    found = {state for stage in stages for state, count in stage.counts.items() if count}
    (state, *others) = found
    return state if not others and state in ("done", "missing") else None


def _row(stage: StageProgress) -> list[Text]:
    return [Text(stage.work.iteration), Text(stage.work.stage), *_numbers(stage.counts)]


def _numbers(amounts: Any) -> list[Text]:
    shown = [
        Text(f"{amounts[state]:,}", _STYLE[state]) if amounts[state] else Text("·", "dim") for state in WORK_STATES
    ]
    return [*shown, Text(f"{sum(amounts.values()):,}")]


def _last_words(stages: tuple[StageProgress, ...]) -> Iterator[str]:
    for stage in stages:
        for state in ("failed", "running", "queued"):
            pieces = [piece for piece in stage.parts if piece.state == state and piece.message and not _is_usual(piece)]
            shown = pieces[:1] if state == "queued" else pieces[:_TOLD]
            for piece in shown:
                part = f" part {piece.index}" if stage.work.parts > 1 else ""
                yield f"{stage.work.output}{part} {state}: {piece.message}"
            if len(pieces) > len(shown):
                yield f"{stage.work.output}: {len(pieces) - len(shown)} more {state}"


def _is_usual(piece: PartProgress) -> bool:
    """Whether it waits for what all jobs wait for."""
    return piece.state == "queued" and piece.task is not None and piece.task.reason in _USUAL


def _plain(found: status.Status) -> dict[str, Any]:
    stages = [
        {
            "iteration": stage.work.iteration,
            "stage": stage.work.stage,
            "place": stage.work.output,
            "counts": stage.counts,
            "parts": [
                {
                    "index": piece.index,
                    "state": piece.state,
                    "told": piece.message,
                    "job": piece.task.name if piece.task else None,
                }
                for piece in stage.parts
            ],
        }
        for stage in found.stages
    ]
    return {"run": str(found.run), "stages": stages, "problem": found.problem}
