"""The statistics that `spo show` tells of a table, computed once for people and for `--json`.

Every function takes a whole table and returns plain numbers by name: a dict inside means several numbers of one kind (a
distribution, counts by reason, a mean with its standard error).
"""

# pyarrow.compute makes its functions when it is imported, out of the type checker's sight.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.maths.statistics import mean_and_standard_error

Figures = dict[str, Any]

_RESPONSES = ("question_id", "token_ids", "finish_reason", "reward")
_SEGMENTS = ("trajectory_id", "segment", "start", "end", "cutpoints")
_VALUES = ("value_start", "value_end", "advantage", "rollouts", "value_std")
COLUMNS = {
    "rollout": _RESPONSES,
    "segment": _SEGMENTS,
    "estimate": (*_SEGMENTS, *_VALUES),
    "eval": (*_RESPONSES, "answer"),
}
"""What `statistics` reads of each stage's table."""

ZERO = 1e-8  # an advantage nearer to zero than this is a rounding residue


def statistics(stage: str, table: pa.Table) -> Figures:
    """The figures of one artefact.

    Args:
      stage: "rollout", "segment", "estimate" or "eval".
      table: its rows, with `COLUMNS[stage]`.
    """
    describe = {"rollout": of_responses, "segment": of_segments, "estimate": of_advantages, "eval": of_evaluation}
    return {"rows": table.num_rows} | (describe[stage](table) if table.num_rows else {})


def of_responses(table: pa.Table) -> Figures:
    """Questions, reward per question, response lengths in tokens, and why responses ended."""
    lengths = _numpy(pc.list_value_length(table["token_ids"]))
    figures: Figures = {
        "questions": pc.count_distinct(table["question_id"]).as_py(),
        "reward": _reward_by_question(table),
        "questions_with_equal_rewards": _share_with_equal_rewards(table),
        "response_length": _distribution(lengths),
        "finish_reasons": _counts(table["finish_reason"]),
        "tokens": int(lengths.sum()),
    }
    return {name: value for name, value in figures.items() if value is not None}


def of_evaluation(table: pa.Table) -> Figures:
    """The accuracies of all parts together, and what there is to say of any responses."""
    from stages.evaluate import accuracies

    counts = _numpy(table.group_by("question_id").aggregate([("reward", "count")])["reward_count"])
    if (counts != counts[0]).any():  # brought from elsewhere: no one k
        return of_responses(table)
    return {name: _with_error(*score) for name, score in accuracies(table).items()} | of_responses(table)


def of_segments(table: pa.Table) -> Figures:
    """How the trajectories are cut, and how much of them the probability mask keeps."""
    cutpoints = _numpy(pc.list_value_length(table["cutpoints"]))
    lengths = _numpy(table["end"]) - _numpy(table["start"])
    trajectory = _codes(table["trajectory_id"])
    return {
        "trajectories": int(trajectory.max()) + 1,
        "segments_per_trajectory": _distribution(np.bincount(trajectory)),
        "tokens_per_segment": _distribution(lengths),
        "cutpoints_per_trajectory": _distribution(np.bincount(trajectory, weights=cutpoints)),
        "cutpoints_per_segment": _distribution(cutpoints),
        "share_of_tokens_that_are_cutpoints": float(cutpoints.sum() / max(lengths.sum(), 1)),
    }


def of_advantages(table: pa.Table) -> Figures:
    """The cut, and what the Monte Carlo rollouts say of it."""
    rollouts, advantage = _numpy(table["rollouts"]), _numpy(table["advantage"])
    value, estimated = _numpy(table["value_start"]), rollouts > 0
    figures = of_segments(table) | {
        "boundaries_estimated": int(estimated.sum()),
        "rollouts_per_boundary": _distribution(rollouts[estimated]),
        "value_at_those_boundaries": _moments(value[estimated]),
        "standard_deviation_of_their_rollouts": _moments(_numpy(table["value_std"].drop_null())),
        "advantage": _moments(advantage),
        "share_of_advantages_that_are_zero": float(np.mean(np.abs(advantage) <= ZERO)),
        "reward_of_the_trajectories": _moments(_last_values(table)),
    }
    return {name: value for name, value in figures.items() if value is not None}


def _reward_by_question(table: pa.Table) -> Figures | None:
    graded = table.select(["question_id", "reward"]).filter(pc.is_valid(table["reward"]))
    if graded.num_rows == 0:
        return None
    means = graded.group_by("question_id").aggregate([("reward", "mean")])["reward_mean"]
    return _with_error(*mean_and_standard_error(_numpy(means)))


def _share_with_equal_rewards(table: pa.Table) -> float | None:
    """Share of the questions with several graded responses where all earned the same: no signal for group methods."""
    graded = table.select(["question_id", "reward"]).filter(pc.is_valid(table["reward"]))
    groups = graded.group_by("question_id").aggregate([("reward", "min"), ("reward", "max"), ("reward", "count")])
    several = _numpy(groups["reward_count"]) > 1
    equal = _numpy(groups["reward_min"]) == _numpy(groups["reward_max"])
    return float(np.mean(equal[several])) if several.any() else None


def _last_values(table: pa.Table) -> np.ndarray:
    """`value_end` of each trajectory's last segment, which is its reward: [trajectories]."""
    ordered = table.select(["trajectory_id", "segment", "value_end"]).sort_by(
        [("trajectory_id", "ascending"), ("segment", "ascending")]
    )
    last = np.append(np.diff(_codes(ordered["trajectory_id"])) != 0, True)
    return _numpy(ordered["value_end"])[last]


def _with_error(mean: float, error: float) -> Figures:
    """A single question says nothing about the spread: its standard error is left out."""
    return {"mean": mean} | ({"standard_error": error} if np.isfinite(error) else {})


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """A number for each distinct value, from 0: [rows]."""
    return column.combine_chunks().dictionary_encode().indices.to_numpy()


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    counted = sorted(column.value_counts().to_pylist(), key=lambda entry: -entry["counts"])
    return {entry["values"]: entry["counts"] for entry in counted}


def _distribution(values: np.ndarray) -> Figures | None:
    """Of counts and lengths."""
    if values.size == 0:
        return None
    low, median, high = np.percentile(values, [0, 50, 100])
    return {"mean": float(values.mean()), "median": float(median), "min": int(low), "max": int(high)}


def _moments(values: np.ndarray) -> Figures | None:
    """Of values that spread about a mean."""
    if values.size == 0:
        return None
    return {"mean": float(values.mean()), "std": float(values.std())}


def _numpy(column: pa.ChunkedArray | pa.Array | pa.Scalar) -> np.ndarray:
    return cast(pa.ChunkedArray, column).to_numpy()
