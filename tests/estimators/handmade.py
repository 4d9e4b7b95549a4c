"""Make artefacts for estimators without a model: trajectories that pandas writes and `spo segment` divides."""

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
    """Write trajectories as another tool would, with the rows distributed over the parts in turn."""
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
    """Return one row per response of these rewards; its tokens are [5, i], or those in `tokens`."""
    return [
        {
            "trajectory_id": f"{question}/{i}",
            "question_id": question,
            "token_ids": list(tokens[question][i]) if question in tokens else [5, i],
            "reward": reward,
        }
        for question, question_rewards in rewards.items()
        for i, reward in enumerate(question_rewards)
    ]


def tree_rows(question: str, tree: Sequence[Any], parent: str = "") -> list[dict[str, Any]]:
    """Return one row per node, of two tokens each, for a tree of nested lists whose leaves are rewards."""
    found = []
    for i, child in enumerate(tree):
        path = f"{parent}.{i}" if parent else str(i)
        inner = isinstance(child, list | tuple)
        found.append(
            {
                "trajectory_id": f"{question}/{path}",
                "parent_id": f"{question}/{parent}" if parent else None,
                "question_id": question,
                "token_ids": [7, i],
                "finish_reason": "segment" if inner else "stop",
                "reward": np.nan if inner else child,
            }
        )
        found += tree_rows(question, child, path) if inner else []
    return found


def estimate_rows(out: Path, cutpoints: Path, **options: Any) -> tuple[dict[tuple[str, int], dict[str, Any]], Summary]:
    """Run `spo estimate`; return the rows by (trajectory_id, segment_index), and the summary."""
    summary = estimate.run(estimate.Config(out=out, cutpoints=cutpoints, **options))
    return {(row["trajectory_id"], row["segment_index"]): row for row in rows(out)}, summary


def advantages(table: Mapping[tuple[str, int], Mapping[str, Any]]) -> dict[str, float]:
    """Return the advantage of each trajectory, for tables with one row per trajectory."""
    return {name: row["advantage"] for (name, _), row in table.items()}
