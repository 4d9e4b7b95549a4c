"""`spo status`: print one line per stage of each iteration, and the last message of unfinished parts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from rich.table import Table
from rich.text import Text

from spo_cli.console import duration, number, print_line, print_notes, print_results, rounded_rate
from stages.configs.status import Config
from stages.core.progress import Progress, Silent
from stages.pipeline import status
from stages.slurm.states import WORK_STATES, PartProgress, StageProgress, WorkState, count_states

_STYLE: dict[WorkState, str] = {"done": "green", "running": "cyan", "queued": "blue", "failed": "red", "missing": "dim"}
_MOST_MESSAGES = 6  # parts per stage and state whose last message is shown
_COMMON_REASONS = {"Dependency", "Resources", "Priority", ""}  # reasons why a job waits that need no message


@dataclass(frozen=True)
class StatusReport:
    """A status and its output format."""

    status: status.Status
    json: bool


def run(config: Config, progress: Progress = Silent()) -> StatusReport:
    """Return the progress of a run. Raises as `stages.pipeline.status.run`."""
    return StatusReport(status.run(config, progress), config.json)


def report(result: StatusReport) -> None:
    """Print the progress of a run."""
    found = result.status
    if result.json:
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
    for line in _last_messages(found.stages):
        print_line(line)
    if found.problem:
        print_notes([found.problem])
    return None


def _rows(stages: tuple[StageProgress, ...]) -> Iterator[list[Text]]:
    """Yield a row per stage; consecutive iterations that are all done, or all missing, share one row."""
    iterations = [list(group) for _, group in groupby(stages, key=lambda stage: stage.work.iteration)]
    for common_state, group in groupby(iterations, key=_common_state):
        run = list(group)
        if not common_state:
            yield from (_row(stage) for one in run for stage in one)
            continue
        first, last = run[0][0].work.iteration, run[-1][0].work.iteration
        name = first if first == last else f"{first}–{last}"
        amounts = count_states([stage for one in run for stage in one])
        yield [Text(name), Text("all stages"), *_numbers(amounts)]


def _common_state(stages: list[StageProgress]) -> WorkState | None:
    """Return `done` or `missing` if all parts of all stages are in this state, else None."""
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


def _last_messages(stages: tuple[StageProgress, ...]) -> Iterator[str]:
    """Yield the last messages of unfinished parts: of failed ones, then running ones, then one of the queued ones."""
    for stage in stages:
        for state in ("failed", "running", "queued"):
            parts = [part for part in stage.parts if part.state == state and part.message and not _waits_as_usual(part)]
            shown = parts[:1] if state == "queued" else parts[:_MOST_MESSAGES]
            for part in shown:
                name = f" part {part.index}" if stage.work.parts > 1 else ""
                yield f"{stage.work.output}{name} {state}: {part.message}{_activity(part)}"
            if len(parts) > len(shown):
                yield f"{stage.work.output}: {len(parts) - len(shown)} more {state}"


def _activity(part: PartProgress) -> str:
    """Return rate, time left, reward and last warning of a part, as far as they are known."""
    found, parts = part.activity, list[str]()
    if found.tokens_per_second is not None and part.state == "running":
        parts.append(f"{number(rounded_rate(found.tokens_per_second))} tokens/s")
    if found.seconds_left is not None and part.state == "running":
        parts.append(f"{duration(found.seconds_left)} left")
    if found.reward is not None:
        parts.append(f"reward {number(found.reward)} so far")
    if found.warning is not None and found.warning not in part.message:
        parts.append(f"last warning: {found.warning}")
    return "".join(f" · {text}" for text in parts)


def _waits_as_usual(part: PartProgress) -> bool:
    """Return whether a part is queued for a reason that needs no message."""
    return part.state == "queued" and part.task is not None and part.task.reason in _COMMON_REASONS


def _plain(found: status.Status) -> dict[str, Any]:
    """Return a status as JSON values."""
    stages = [
        {
            "iteration": stage.work.iteration,
            "stage": stage.work.stage,
            "path": stage.work.output,
            "counts": stage.counts,
            "parts": [
                {
                    "index": part.index,
                    "state": part.state,
                    "message": part.message,
                    "job": part.task.name if part.task else None,
                    **asdict(part.activity),
                }
                for part in stage.parts
            ],
        }
        for stage in found.stages
    ]
    return {"run": str(found.run), "stages": stages, "problem": found.problem}
