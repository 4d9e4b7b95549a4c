"""Artefacts for estimators that need no model: trajectories written by pandas, cut by `spo segment`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages import estimate
from stages.core.progress import Summary
from tests.chains import rows


def write_trajectories(path: Path, records: Sequence[Mapping[str, Any]], parts: int = 1) -> Path:
    """Parquet of another tool, in one file or several, its rows dealt out in turn."""
    path.mkdir(parents=True)
    filled = [
        {
            "parent_id": None,
            "prompt_token_ids": [1],
            "logprobs": [-1.0] * len(record["token_ids"]),
            "finish_reason": "stop",
            "reference": "x",
            **record,
        }
        for record in records
    ]
    for part in range(parts):
        frame = pd.DataFrame(filled[part::parts])
        frame["parent_id"] = frame["parent_id"].astype("string")
        frame["reward"] = frame["reward"].astype("float32")
        frame.to_parquet(path / f"{part}.parquet")
    return path


def responses(
    rewards: Mapping[str, Sequence[float]], tokens: Mapping[str, Sequence[Sequence[int]]] = {}
) -> list[dict[str, Any]]:
    """Whole responses of [5, i] or these tokens, by question."""
    return [
        {
            "trajectory_id": f"{question}/{i}",
            "question_id": question,
            "token_ids": list(tokens[question][i]) if question in tokens else [5, i],
            "reward": reward,
        }
        for question, of_question in rewards.items()
        for i, reward in enumerate(of_question)
    ]


def stretches(question: str, tree: Sequence[Any], above: str = "") -> list[dict[str, Any]]:
    """A tree of nested lists whose leaves are rewards, as one row per stretch of two tokens."""
    found = []
    for i, below in enumerate(tree):
        path = f"{above}.{i}" if above else str(i)
        inner = isinstance(below, list | tuple)
        found.append(
            {
                "trajectory_id": f"{question}/{path}",
                "parent_id": f"{question}/{above}" if above else None,
                "question_id": question,
                "token_ids": [7, i],
                "finish_reason": "segment" if inner else "stop",
                "reward": np.nan if inner else below,
            }
        )
        found += stretches(question, below, path) if inner else []
    return found


def estimated(out: Path, cutpoints: Path, **options: Any) -> tuple[dict[tuple[str, int], dict[str, Any]], Summary]:
    """`spo estimate`: the rows by their key, and the summary."""
    summary = estimate.run(estimate.Config(out=out, cutpoints=cutpoints, **options))
    return {(row["trajectory_id"], row["segment_index"]): row for row in rows(out)}, summary


def advantages(table: Mapping[tuple[str, int], Mapping[str, Any]]) -> dict[str, float]:
    """Of tables with one row per trajectory."""
    return {name: row["advantage"] for (name, _), row in table.items()}
