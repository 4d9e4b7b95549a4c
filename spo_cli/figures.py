"""Compute the statistics of a table for `spo show`, for the screen and for `--json`.

Every function takes a whole table and returns numbers by name. A nested dict holds several numbers of one kind: a
distribution, counts by reason, a mean with its standard error.
"""

# pyarrow.compute defines its functions at import, so the type checker does not know them.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.evaluation.scores import COLUMNS as SCORED
from stages.evaluation.scores import score
from stages.evaluation.summaries import accuracies
from stages.maths.advantages import NEGLIGIBLE
from stages.maths.statistics import mean_and_standard_error
from stages.responses.signal import without_answer
from stages.shards.schemas import ROLLOUTS, TOKEN_METRICS
from stages.shards.tables import encode_names

Figures = dict[str, Any]

_RESPONSES = ("question_id", "token_ids", "finish_reason", "answer", "reward")
_SEGMENTS = ("trajectory_id", "segment_index", "start", "end", "cutpoints")
_VALUES = ("value_start", "value_end", "advantage", "num_rollouts", "value_std")
COLUMNS = {
    "rollout": _RESPONSES,
    "segment": _SEGMENTS,
    "estimate": (*_SEGMENTS, *_VALUES),
    ROLLOUTS.stage: ("question_id", "state_id", "token_ids", "cutpoints", "finish_reason", "reward", "advantage"),
    TOKEN_METRICS.stage: ("step", "trajectory_id", "new_logprob", "sampler_logprob", "entropy", "ratio", "clipped"),
    "eval": SCORED,
}
"""Stage → the columns of its table that `statistics` reads."""


def statistics(stage: str, table: pa.Table, omitted: int = 0) -> Figures:
    """Return the figures of one artefact.

    Args:
      stage: the stage of its schema.
      table: its rows, with `COLUMNS[stage]`.
      omitted: number of segments without advantage that an estimator did not write.
    """
    describe = {
        "rollout": of_responses,
        "segment": of_segments,
        "estimate": of_advantages,
        ROLLOUTS.stage: of_rollouts,
        TOKEN_METRICS.stage: of_token_metrics,
        "eval": of_evaluation,
    }
    figures = {"rows": table.num_rows} | (describe[stage](table) if table.num_rows else {})
    if omitted:
        figures["segments_without_advantage_left_out"] = omitted
        figures.pop("reward_of_the_trajectories", None)  # trajectories' last segments may be among the omitted ones
    return figures


def of_responses(table: pa.Table) -> Figures:
    """Return questions, reward per question, response lengths in tokens, and finish reasons."""
    lengths = numbers(pc.list_value_length(table["token_ids"]))
    figures: Figures = {
        "questions": pc.count_distinct(table["question_id"]).as_py(),
        "reward": _reward_by_question(table),
        "questions_with_equal_rewards": _fraction_with_equal_rewards(table),
        "response_length": distribution(lengths),
        "finish_reasons": counts_of(table["finish_reason"]),
        "responses_without_answer": float(without_answer(table).mean()) or None,
        "tokens": int(lengths.sum()),
    }
    return {name: value for name, value in figures.items() if value is not None}


def of_evaluation(table: pa.Table) -> Figures:
    """Return the accuracies of all parts together, and the figures of the responses at the largest budget."""
    scores = score(table)
    several = {name: len({getattr(one, name) for one in scores}) > 1 for name in ("task", "max_tokens")}
    found = accuracies(scores, several_tasks=several["task"], several_budgets=several["max_tokens"])
    if several["max_tokens"]:
        table = table.filter(pc.equal(table["max_tokens"], pc.max(table["max_tokens"])))
    return {name: with_error(*score) for name, score in found.items()} | of_responses(table)


def of_segments(table: pa.Table) -> Figures:
    """Return how trajectories are cut, and the fraction of tokens that the probability mask keeps."""
    cutpoints = numbers(pc.list_value_length(table["cutpoints"]))
    lengths = numbers(table["end"]) - numbers(table["start"])
    trajectory = encode_names(table["trajectory_id"])
    return {
        "trajectories": int(trajectory.max()) + 1,
        "segments_per_trajectory": distribution(np.bincount(trajectory)),
        "tokens_per_segment": distribution(lengths),
        "cutpoints_per_trajectory": distribution(np.bincount(trajectory, weights=cutpoints)),
        "cutpoints_per_segment": distribution(cutpoints),
        "share_of_tokens_that_are_cutpoints": float(cutpoints.sum() / max(lengths.sum(), 1)),
    }


def of_advantages(table: pa.Table) -> Figures:
    """Return the figures of segments, values, rollouts and advantages."""
    rollouts, advantage = numbers(table["num_rollouts"]), numbers(table["advantage"])
    value, estimated = numbers(table["value_start"]), rollouts > 0
    figures = of_segments(table) | {
        "boundaries_estimated": int(estimated.sum()),
        "rollouts_per_boundary": distribution(rollouts[estimated]),
        "value_at_those_boundaries": moments(value[estimated]),
        "standard_deviation_of_their_rollouts": moments(numbers(table["value_std"].drop_null())),
        "advantage": moments(advantage),
        "share_of_advantages_that_are_zero": float(np.mean(np.abs(advantage) <= NEGLIGIBLE)),
        "reward_of_the_trajectories": moments(_last_values(table)),
    }
    return {name: value for name, value in figures.items() if value is not None}


def of_rollouts(table: pa.Table) -> Figures:
    """Return the figures of kept rollouts: their states, rewards, lengths, masks and advantages."""
    advantage = numbers(table["advantage"].drop_null())
    states = numbers(table["state_id"].value_counts().field("counts"))
    figures = of_responses(table) | {
        "states": states.size,
        "rollouts_per_state": distribution(states),
        "cutpoints_per_rollout": distribution(numbers(pc.list_value_length(table["cutpoints"]))),
        "advantage": moments(advantage),
        "share_of_advantages_that_are_zero": float(np.mean(np.abs(advantage) <= NEGLIGIBLE))
        if advantage.size
        else None,
    }
    return {name: value for name, value in figures.items() if value is not None}


def of_token_metrics(table: pa.Table) -> Figures:
    """Return the figures of the tokens that a trainer saw: counts, entropies, ratios, distance to the sampler."""
    drift = numbers(pc.subtract(table["new_logprob"], table["sampler_logprob"]).drop_null())
    figures: Figures = {
        "steps": pc.count_distinct(table["step"]).as_py(),
        "trajectories": pc.count_distinct(table["trajectory_id"]).as_py(),
        "tokens_per_step": distribution(numbers(table["step"].value_counts().field("counts"))),
        "entropy": moments(numbers(table["entropy"])),
        "ratio": moments(numbers(table["ratio"])),
        "share_of_tokens_that_are_clipped": float(np.mean(numbers(table["clipped"]))),
        "log_probability_minus_that_of_the_sampler": moments(drift),
    }
    return {name: value for name, value in figures.items() if value is not None}


def _reward_by_question(table: pa.Table) -> Figures | None:
    graded = table.select(["question_id", "reward"]).filter(pc.is_valid(table["reward"]))
    if graded.num_rows == 0:
        return None
    means = graded.group_by("question_id").aggregate([("reward", "mean")])["reward_mean"]
    return with_error(*mean_and_standard_error(numbers(means)))


def _fraction_with_equal_rewards(table: pa.Table) -> float | None:
    """Return the fraction of questions with several graded responses whose rewards are equal: no signal in a group."""
    graded = table.select(["question_id", "reward"]).filter(pc.is_valid(table["reward"]))
    groups = graded.group_by("question_id").aggregate([("reward", "min"), ("reward", "max"), ("reward", "count")])
    several = numbers(groups["reward_count"]) > 1
    equal = numbers(groups["reward_min"]) == numbers(groups["reward_max"])
    return float(np.mean(equal[several])) if several.any() else None


def _last_values(table: pa.Table) -> np.ndarray:
    """Return `value_end` of each trajectory's last segment, which is its reward: [trajectories]."""
    ordered = table.select(["trajectory_id", "segment_index", "value_end"]).sort_by(
        [("trajectory_id", "ascending"), ("segment_index", "ascending")]
    )
    last = np.append(np.diff(encode_names(ordered["trajectory_id"])) != 0, True)
    return numbers(ordered["value_end"])[last]


def with_error(mean: float, error: float) -> Figures:
    """Return a mean with its standard error; an infinite or NaN error (a single question) is omitted."""
    return {"mean": mean} | ({"standard_error": error} if np.isfinite(error) else {})


def counts_of(column: pa.ChunkedArray) -> dict[str, int]:
    """Return the number of occurrences of each value, the most frequent first."""
    counted = sorted(column.value_counts().to_pylist(), key=lambda entry: -entry["counts"])
    return {entry["values"]: entry["counts"] for entry in counted}


def distribution(values: np.ndarray) -> Figures | None:
    """Return mean, median and range of counts or lengths; None for no values."""
    if values.size == 0:
        return None
    low, median, high = np.percentile(values, [0, 50, 100])
    return {"mean": float(values.mean()), "median": float(median), "min": int(low), "max": int(high)}


def moments(values: np.ndarray) -> Figures | None:
    """Return mean and standard deviation; None for no values."""
    if values.size == 0:
        return None
    return {"mean": float(values.mean()), "std": float(values.std())}


def numbers(column: pa.ChunkedArray | pa.Array | pa.Scalar) -> np.ndarray:
    """Return a column as an array; the cast is for the type checker, which does not know `pyarrow.compute`."""
    return cast(pa.ChunkedArray, column).to_numpy()
