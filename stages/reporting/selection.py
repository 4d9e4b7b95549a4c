"""Choose the questions of a report that would otherwise become too large: whole questions, by a hash of their id.

A question that is chosen is shown in every iteration and in every run, so that it can be followed, and with all its
responses, so that group estimators can be computed from them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.core.storage import digest
from stages.reporting.sources import Responses
from stages.shards.parts import Artefact
from stages.shards.schemas import EVALUATION

BYTES_PER_TOKEN = 6
"""Bytes that a response token takes in the file, measured on byte-level and BPE models: 2 to 6."""


def choose(responses: Iterable[Responses], max_trajectories: int, max_bytes: float) -> tuple[set[str], int, int]:
    """Return the ids of the chosen questions, the number of their rows, and the number of all rows.

    Args:
      max_trajectories: most rows (responses, or nodes of trees) in the report.
      max_bytes: most bytes of the file, estimated from the number of tokens.
    """
    rows: dict[str, int] = {}
    tokens: dict[str, int] = {}
    for one in responses:
        table = read_lengths(one.artefact)
        for name, count, length in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
            rows[name], tokens[name] = rows.get(name, 0) + count, tokens.get(name, 0) + length
    order = sorted(rows, key=lambda name: digest(name.encode()))
    total_rows = np.cumsum([rows[name] for name in order])
    total_bytes = np.cumsum([tokens[name] for name in order]) * BYTES_PER_TOKEN
    fits = (total_rows <= max_trajectories) & (total_bytes <= max_bytes)
    count = max(1, int(fits.sum())) if order else 0
    return set(order[:count]), int(total_rows[count - 1]) if count else 0, sum(rows.values())


def read_lengths(artefact: Artefact) -> pa.Table:
    """Return question_id, the number of rows and the number of response tokens of each question."""
    budget = ["max_tokens"] if artefact.schema is EVALUATION else []
    table = largest_budget(artefact.read_all(["question_id", "token_ids", *budget]))
    length = pc.list_value_length(table["token_ids"])  # pyright: ignore[reportAttributeAccessIssue]
    grouped = pa.table({"question_id": table["question_id"], "length": length}).group_by("question_id")
    return grouped.aggregate([("length", "count"), ("length", "sum")]).select(
        ["question_id", "length_count", "length_sum"]
    )


def largest_budget(table: pa.Table) -> pa.Table:
    """Return the rows of an evaluation at its largest token budget; other tables unchanged."""
    if "max_tokens" not in table.column_names:
        return table
    budgets = table["max_tokens"].fill_null(0)
    return table.filter(pc.equal(budgets, pc.max(budgets)))  # pyright: ignore[reportAttributeAccessIssue]
