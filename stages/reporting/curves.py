"""Compute the learning curves of a report: one point per iteration, from rows, footers, logs and training metrics."""

# pyarrow.compute makes its functions at import time:
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from stages.core.paths import log_directory
from stages.evaluation.scores import COLUMNS as SCORED
from stages.evaluation.scores import score
from stages.maths import tree_structure
from stages.maths.statistics import mean_and_standard_error, question_means
from stages.reporting.sources import Checkpoint, Found
from stages.responses.trees import parent_rows
from stages.shards.calls import Call, gpu_seconds, read_log, wall_seconds
from stages.shards.parts import Artefact
from stages.shards.tables import encode_names

_TRAINED = {
    "entropy": "entropy",
    "kl": "kl",
    "clipped": "clip_ratio/region_mean",
    "mask": "mask/fraction",
    "mismatch": "mismatch/kl",
    "loss": "loss",
    "grad_norm": "grad_norm",
}
"""Figure → name in the summary of a training call."""
_WITHOUT_MODEL = ("segment",)
"""Stages that run no model, so that they use no GPU."""


def iterations(found: Found) -> list[dict[str, Any]]:
    """Return the figures of every iteration of every run, in order.

    A figure is a number, or [mean, standard error]; `stages` has seconds and tokens per stage. Figures that are not
    recorded on disk are absent.
    """
    points: dict[tuple[int, int], dict[str, Any]] = {}

    def point(run: int, number: int) -> dict[str, Any]:
        return points.setdefault((run, number), {"run": run, "iteration": number, "stages": {}})

    for one in found.responses:
        at = point(one.run, one.iteration)
        at |= _of_evaluation(one.artefact) if one.kind == "eval" else _of_trajectories(one.artefact)
        for artefact in (one.artefact, one.cutpoints, one.advantages):
            if artefact is not None:
                at["stages"][artefact.schema.stage] = _cost(artefact)
        at.setdefault("label", one.label.split()[0] if one.label else "")
    for one in found.checkpoints:
        at = point(one.run, one.iteration)
        at |= _of_training(one)
        at["stages"][one.lineage.stage] = _cost_of_training(one)
    return [points[key] for key in sorted(points)]


def _of_trajectories(artefact: Artefact) -> dict[str, Any]:
    """Return reward, length, truncation, agreement and staleness.

    A tree is weighted by the probability of reaching each leaf.
    """
    table = artefact.read_all(["trajectory_id", "parent_id", "question_id", "token_ids", "finish_reason", "reward"])
    if not table.num_rows:
        return {}
    parent, question = parent_rows(table), encode_names(table["question_id"])
    leaf = tree_structure.is_leaf(parent)
    weight = tree_structure.path_probabilities(parent, question)[leaf]
    lengths = pc.list_value_length(table["token_ids"]).to_numpy().astype(np.int64)
    length = tree_structure.sum_from_root(parent, lengths)[leaf]
    reward = table["reward"].to_numpy(zero_copy_only=False).astype(np.float64)[leaf]
    cut = pc.equal(table["finish_reason"], "length").to_numpy()[leaf]
    question, count = question[leaf], int(question.max()) + 1

    def per_question(values: np.ndarray) -> list[float]:
        known = np.isfinite(values)
        total = np.bincount(question[known], weight[known], count)
        sums = np.bincount(question[known], weight[known] * values[known], count)
        return _with_error(sums[total > 0] / total[total > 0])

    mean = question_means(question, reward, count)
    spread = np.bincount(question, np.abs(reward - mean[question]), count)
    several = np.bincount(question, minlength=count) > 1
    figures = {
        "reward": per_question(reward),
        "length": per_question(length.astype(np.float64)),
        "truncated": per_question(cut.astype(np.float64)),
        "responses": int(leaf.sum()),
        "questions": count,
        "ungradable": int(np.isnan(reward).sum()),
    }
    if lag := [part.lineage.config.get("staleness") for part in artefact.parts if part.lineage]:
        figures |= {} if lag[0] is None else {"staleness": lag[0]}
    return figures | ({"agreeing": float(np.mean(spread[several] < 1e-6))} if several.any() else {})


def _of_evaluation(artefact: Artefact) -> dict[str, Any]:
    """Return avg@k over all tasks at the largest budget, each question with the same weight."""
    scores = score(artefact.read_all(SCORED))
    largest = {one.task: one for one in scores}  # budgets ascend
    values = np.concatenate([next(iter(one.accuracies.values())) for one in largest.values()])
    values = values[np.isfinite(values)]
    names = {next(iter(one.accuracies)) for one in largest.values()}
    return {"accuracy": _with_error(values), "accuracy_name": "/".join(sorted(names))} if values.size else {}


def _of_training(checkpoint: Checkpoint) -> dict[str, Any]:
    summary = checkpoint.lineage.summary
    return {name: summary[key] for name, key in _TRAINED.items() if isinstance(summary.get(key), int | float)}


def _cost(artefact: Artefact) -> dict[str, float]:
    """Return the tokens that a stage sampled, from its footers, and what its calls took, from its logs."""
    sampled = sum(part.lineage.counts.get("sampled", 0) for part in artefact.parts if part.lineage)
    logs = [read_log(log) for log in sorted(log_directory(artefact.directory).glob("part-*.log"))]
    prefilled = sum(call.total("prefilled") for calls in logs for call in calls)
    return _known(sampled=sampled, prefilled=prefilled) | _times(logs, artefact.schema.stage)


def _cost_of_training(checkpoint: Checkpoint) -> dict[str, float]:
    """Return the tokens that a call of `spo train` or `spo sft` trained, from its lineage, and its times."""
    counts = checkpoint.lineage.counts
    figures = _known(
        trained=counts.get("kept_tokens", 0) or counts.get("tokens", 0),
        fed=counts.get("fed_tokens", 0),
        steps=counts.get("steps", 0),
    )
    return figures | _times([checkpoint.calls], checkpoint.lineage.stage)


def _times(logs: Sequence[Sequence[Call]], stage: str) -> dict[str, float]:
    """Return what the calls of a stage took; {} if they are not recorded.

    seconds: of all calls on all parts together, with loading and saving, and with calls that were killed.
    wall_seconds: while at least one of them worked.
    gpu_seconds: seconds times GPUs; 0 on CPUs, absent if the logs do not say.
    """
    calls = [call for log in logs for call in log]
    if not calls:
        return {}
    times = {"seconds": sum(call.seconds for call in calls), "wall_seconds": wall_seconds(calls)}
    gpus = 0.0 if stage in _WITHOUT_MODEL else gpu_seconds(logs)
    return times if gpus is None else times | {"gpu_seconds": gpus}


def _known(**figures: float) -> dict[str, float]:
    return {name: value for name, value in figures.items() if value}


def _with_error(values: np.ndarray | Sequence[float]) -> list[float]:
    """Return [mean, standard error]; the error is omitted where it is not defined."""
    values = np.asarray(values)
    if not values.size:
        return []
    return [one for one in mean_and_standard_error(values) if math.isfinite(one)]
