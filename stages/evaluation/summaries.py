"""Summarize an evaluation: accuracies for the footer of a part, and the summary of a call."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence

import pyarrow as pa

from stages.core.paths import AnyPath
from stages.core.progress import Summary
from stages.evaluation.scores import Scores, score
from stages.responses.prompts import overlong_notes
from stages.shards.writing import PartWriter


def accuracies(
    scores: Sequence[Scores], *, several_tasks: bool = False, several_budgets: bool = False
) -> dict[str, tuple[float, float]]:
    """Return (mean, standard error) of every accuracy: `avg@4`, or `math500/2048/avg@4` with several of each."""
    found = {}
    for one in scores:
        prefix = [str(one.task)] * several_tasks + [str(one.max_tokens)] * several_budgets
        for name, estimate in one.result().accuracies.items():
            found["/".join([*prefix, name])] = (estimate.mean, estimate.standard_error)
    return found


def score_accuracies(responses: pa.Table, *, tasks: int, budgets: int) -> dict[str, tuple[float, float]]:
    """Return the accuracies of the rows of a part, for its footer.

    Args:
      tasks, budgets: their numbers in the whole evaluation, so that all parts use the same names.
    """
    return accuracies(score(responses), several_tasks=tasks > 1, several_budgets=budgets > 1)


def summarize(
    parts: Sequence[PartWriter],
    out: AnyPath,
    started: float,
    *,
    tokens_sampled: int = 0,
    tokens_prefilled: int = 0,
    notes: tuple[str, ...] = (),
) -> Summary:
    """Return the summary of a call that wrote these parts; it has accuracies only if there is one part.

    Args:
      started: `time.monotonic()` at the start of the call.
    """
    figures = dict[str, float]()
    recorded = parts[0].lineage.summary if len(parts) == 1 else {}
    for name in sorted(recorded, key=_natural_order):  # the JSON of the footer sorts names alphabetically
        mean, error = recorded[name]
        figures[name] = mean
        # No two questions differ: the standard error says nothing. The tables of `spo eval` show a Wilson interval.
        says_nothing = error == 0 and mean in (0, 1)
        figures[f"{name} standard error"] = math.nan if error is None or says_nothing else error
    ungradable = sum(part.lineage.counts.get("ungradable", 0) for part in parts)
    left_out = (f"{ungradable:,} rows could not be graded: the accuracies leave them out",) if ungradable else ()
    overlong = overlong_notes(part.lineage.counts for part in parts)
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
        notes=(*notes, *overlong, *left_out),
    )


def _natural_order(name: str) -> list[str | int]:
    """Return a sort key that puts pass@2 before pass@16."""
    return [int(token) if token.isdigit() else token for token in re.split(r"(\d+)", name)]
