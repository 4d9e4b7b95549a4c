"""What a part of an evaluation says of itself: its accuracies in the footer, and the summary of the call."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from stages.core.progress import Summary
from stages.evaluation.scores import Scores, score
from stages.shards.writing import PartWriter


def accuracies(
    scores: Sequence[Scores], *, several_tasks: bool = False, several_budgets: bool = False
) -> dict[str, tuple[float, float]]:
    """Mean and standard error of every accuracy: `avg@4`, or `math500/2048/avg@4` where there are several of each."""
    found = {}
    for one in scores:
        place = [str(one.task)] * several_tasks + [str(one.max_tokens)] * several_budgets
        for name, estimate in one.result().accuracies.items():
            found["/".join([*place, name])] = (estimate.mean, estimate.standard_error)
    return found


def score_accuracies(responses: pa.Table, *, tasks: int, budgets: int) -> dict[str, tuple[float, float]]:
    """The accuracies of the rows of a part, for its footer; tasks and budgets are those of the whole work."""
    return accuracies(score(responses), several_tasks=tasks > 1, several_budgets=budgets > 1)


def summarise(
    parts: Sequence[PartWriter],
    out: Path,
    started: float,
    *,
    tokens_sampled: int = 0,
    tokens_prefilled: int = 0,
    notes: tuple[str, ...] = (),
) -> Summary:
    """How a call that wrote these parts ended; the accuracies are told where it wrote one part."""
    figures = dict[str, float]()
    told = parts[0].lineage.summary if len(parts) == 1 else {}
    for name in sorted(told, key=_by_numbers):  # JSON has sorted them by letters
        mean, error = told[name]
        figures |= {name: mean, f"{name} standard error": math.nan if error is None else error}
    lost = sum(part.lineage.counts.get("ungradable", 0) for part in parts)
    left_out = (f"{lost:,} rows could not be graded: the accuracies leave them out",) if lost else ()
    return Summary(
        stage="eval",
        out=str(out),
        rows=sum(part.rows for part in parts),
        seconds=time.monotonic() - started,
        up_to_date=all(part.up_to_date for part in parts),
        tokens_sampled=tokens_sampled,
        tokens_prefilled=tokens_prefilled,
        reward=next((mean for name, mean in figures.items() if name.startswith("avg@")), None),
        figures=figures,
        notes=(*notes, *left_out),
    )


def _by_numbers(name: str) -> list[str | int]:
    """pass@2 comes before pass@16."""
    return [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", name)]
