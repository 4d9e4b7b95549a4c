"""Make graded responses by hand: as a table in memory, and as an evaluation on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.shards.lineage import Lineage
from stages.shards.schemas import EVALUATION
from stages.shards.writing import open_part


def graded(*questions: tuple[str, str], **columns: Any) -> pa.Table:
    """Return rows of EVALUATION for (question, letters) pairs such as `("q", "Ab-?")`.

    A letter is one response with this answer: upper case is right, lower case wrong, `-` has no answer and is wrong,
    and `?` is ungradable.

    Args:
      columns: replaces values of a column: one value for all rows, or a list.
    """
    letters = [(name, number, letter) for name, responses in questions for number, letter in enumerate(responses)]
    count = len(letters)
    values: dict[str, Any] = {
        "response_id": [f"{name}/{number}" for name, number, _ in letters],
        "task": "t",
        "question_id": [name for name, *_ in letters],
        "subject": None,
        "level": None,
        "sample": [number for _, number, _ in letters],
        "max_tokens": 8,
        "prompt": "p",
        "prompt_token_ids": [[1]] * count,
        "token_ids": [[2, 3]] * count,
        "logprobs": [[-1.0, -2.0]] * count,
        "text": "x",
        "finish_reason": "stop",
        "answer": [None if letter in "-?" else letter.lower() for *_, letter in letters],
        "reference": "r",
        "reward": [None if letter == "?" else float(letter.isupper()) for *_, letter in letters],
    } | columns
    return pa.table(
        {name: value if isinstance(value, list) else [value] * count for name, value in values.items()},
        schema=EVALUATION.arrow,
    )


def write_evaluation(out: Path, *tables: pa.Table, settings: Mapping[str, Any] | None = None) -> Path:
    """Write an evaluation of one part per table, with a lineage that records these settings."""
    config = {"task": ["t"], "task_arg": [], "temperature": 0.0} | dict(settings or {})
    lineage = Lineage(stage="eval", schema_version=EVALUATION.version, config=config, seed=0, fingerprint="")
    for index, table in enumerate(tables):
        with open_part(out, index, len(tables), lineage, EVALUATION) as part:
            part.write(table)
    return out


def standard_error(*values: float) -> float:
    """Return the standard error of a mean over questions."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))
