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
ROLLOUT_CHARACTERS = 600
"""Characters of the text of a kept rollout that a report shows."""
BYTES_PER_SEEN_TOKEN = 24
"""Bytes that the token metrics of a kept token take in the file; most of them are digits of five numbers."""
BYTES_PER_CHARACTER = 0.7
"""Bytes that a character of the text of a kept rollout takes in the file."""


def choose(responses: Iterable[Responses], max_trajectories: int, max_bytes: float) -> tuple[set[str], int, int]:
    """Return the ids of the chosen questions, the number of their rows, and the number of all rows.

    Args:
      max_trajectories: most rows (responses, or nodes of trees) in the report.
      max_bytes: most bytes of the file, estimated from the number of tokens.
    """
    rows: dict[str, int] = {}
    size: dict[str, float] = {}
    for one in responses:
        table = read_lengths(one.artefact)
        in_all = pc.sum(table["length_sum"]).as_py() or 1  # pyright: ignore[reportAttributeAccessIssue]
        per_token = BYTES_PER_TOKEN + (BYTES_PER_SEEN_TOKEN * one.tokens.rows / in_all if one.tokens else 0.0)
        for name, count, length in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
            rows[name], size[name] = rows.get(name, 0) + count, size.get(name, 0.0) + per_token * length
        for name, length in _characters(one.rollouts).items():
            size[name] = size.get(name, 0.0) + BYTES_PER_CHARACTER * length
    order = sorted(rows, key=lambda name: digest(name.encode()))
    total_rows = np.cumsum([rows[name] for name in order])
    total_bytes = np.cumsum([size[name] for name in order])
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


def _characters(rollouts: Artefact | None) -> dict[str, int]:
    """Return the characters that the texts of the rollouts of each question take in a report."""
    if rollouts is None:
        return {}
    table = rollouts.read_all(["question_id", "text"])
    length = pc.min_element_wise(  # pyright: ignore[reportAttributeAccessIssue]
        pc.utf8_length(table["text"]),  # pyright: ignore[reportAttributeAccessIssue]
        ROLLOUT_CHARACTERS,
    )
    grouped = pa.table({"question_id": table["question_id"], "length": length}).group_by("question_id")
    total = grouped.aggregate([("length", "sum")])
    return dict(zip(total["question_id"].to_pylist(), total["length_sum"].to_pylist(), strict=True))


def largest_budget(table: pa.Table) -> pa.Table:
    """Return the rows of an evaluation at its largest token budget; other tables unchanged."""
    if "max_tokens" not in table.column_names:
        return table
    budgets = table["max_tokens"].fill_null(0)
    return table.filter(pc.equal(budgets, pc.max(budgets)))  # pyright: ignore[reportAttributeAccessIssue]
