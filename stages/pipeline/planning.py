"""Turn a recipe into a plan: the checked configuration of every stage of every iteration.

Iteration i takes the questions after those of iteration i - 1, and its own seeds. `spo run` runs a plan; `spo slurm`
writes it as jobs.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stages.configs import estimate, evaluate, rollout, segment, sft, train
from stages.configs.execution import Cluster
from stages.configs.run import SEPARATE_TABLES, TABLES, Config, RunTable
from stages.configs.train import CRITIC
from stages.core.errors import UserError
from stages.core.paths import AnyPath
from stages.core.store import StorePath
from stages.pipeline.recipe import Recipe, read_recipe
from stages.pipeline.retention import Retention
from stages.shards.sharding import ALL
from stages.tasks import open_task

WHOLE: dict[str, Any] = {"shard": ALL, "num_shards": None, "shards_per_task": 1}
"""Shard options of every stage of a plan: one process computes all shards and ignores a scheduler's variables."""


@dataclass(frozen=True)
class Iteration:
    """The configurations of the stages of one iteration, in order."""

    rollout: rollout.Config
    segment: segment.Config
    estimate: estimate.Config
    train: train.Config


@dataclass(frozen=True)
class Plan:
    """A whole run, checked before any work.

    Attributes:
      out: directory of the run.
      start: warm start; None if [run] names a model.
      iterations: configurations of each iteration.
      evaluations: index of the iteration that an evaluation follows → its configuration; -1 is the start.
      report_to: trackers of the metrics of all stages.
      settings: tables of the recipe, for the trackers.
      keep: which checkpoints are kept whole; None keeps all of them.
      cluster: the workers of Ray; None: the run is one process.
      overlap: number of iterations that sampling is ahead of training.
    """

    out: AnyPath
    start: sft.Config | None
    iterations: tuple[Iteration, ...]
    evaluations: dict[int, evaluate.Config]
    report_to: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    keep: Retention | None = None
    cluster: Cluster | None = None
    overlap: int = 0


def open_tasks(plan: Plan) -> None:
    """Open every task of a plan once, to check its name, options and data before any work.

    Raises:
      UserError: as `open_task`.
    """
    configs = [*([plan.start] if plan.start else []), *(iteration.rollout for iteration in plan.iterations)]
    choices = [(config.task, config.data, config.task_arg) for config in configs]
    choices += [choice for evaluation in plan.evaluations.values() for choice in evaluation.tasks]
    for name, data, args in dict.fromkeys(choices):
        open_task(name, data, args)


def open_recipe(config: Config) -> Recipe:
    """Read the recipe, with the options of the command line applied.

    Raises:
      UserError: as `stages.pipeline.recipe.read_recipe`.
    """
    given = {name: getattr(config, name) for name in ("out", "iterations", "keep_checkpoints", "executor", "overlap")}
    flags = [f"run.{name}={value}" for name, value in given.items() if value is not None]
    flags += [f"run.report_to={json.dumps(config.report_to)}"] * bool(config.report_to)
    flags += [f"ray.address={config.address}"] * bool(config.address)
    return read_recipe(config.recipe, [*config.overrides, *flags], TABLES, "run", SEPARATE_TABLES, config.unset)


def make_plan(config: Config) -> Plan:
    """Return the plan of a recipe.

    Raises:
      UserError: an invalid recipe; the message names the file, the table and the option.
    """
    recipe = open_recipe(config)
    table = recipe.config("run", RunTable)
    cluster = _cluster(recipe, table)
    if config.address and not cluster:
        raise UserError("--address is an option of --executor ray: pass both, or omit it")
    start = _warm_start(recipe, table)
    first = str(start.out) if start else str(table.model)
    policies = {-1: first} | {i: str(_directory(table.out, i) / "checkpoint") for i in range(table.iterations)}
    iterations = tuple(_iteration(recipe, table, i, policies, first) for i in range(table.iterations))
    due = {-1, table.iterations - 1}
    if table.eval_every:
        due |= set(range(table.eval_every - 1, table.iterations, table.eval_every))
    evaluations = {
        i: recipe.config("eval", evaluate.Config, model=policies[i], out=_directory(table.out, i) / "eval", **WHOLE)
        for i in sorted(due)
        if "eval" in recipe.tables
    }
    keep = _retention(table, iterations[-1].train) if iterations else None
    return Plan(
        table.out, start, iterations, evaluations, table.report_to, dict(recipe.tables), keep, cluster, table.overlap
    )


def _cluster(recipe: Recipe, table: RunTable) -> Cluster | None:
    """Return the workers of a run; None for a run in one process.

    Raises:
      UserError: an invalid table [ray], or an option of it in [run].
    """
    if misplaced := sorted({"num_workers", "address"} & set(recipe.tables.get("run", {}))):
        raise UserError(f"{recipe.source}: [run] must not set {', '.join(misplaced)}: set samplers or address in [ray]")
    return recipe.config("ray", Cluster) if table.executor == "ray" else None


def _where(table: RunTable) -> dict[str, Any]:
    """Return the options of a stage that say where its models run; [ray] holds the others."""
    return {"executor": table.executor, "num_workers": None, "address": None}


def _retention(table: RunTable, learn: train.Config) -> Retention | None:
    """Return which checkpoints [run] keeps; None if it keeps all of them."""
    if table.keep_checkpoints is None:
        return None
    if isinstance(table.out, StorePath):
        raise UserError(
            f"keep_checkpoints prunes local checkpoints only, but [run] out is {table.out}: omit keep_checkpoints"
        )
    # Under replay, the next iteration recomputes old log-probabilities with the policies of the last iterations.
    scored = learn.replay if learn.replay and learn.old_logprobs == "recompute" else 1
    return Retention(table.keep_checkpoints, scored + table.overlap, table.keep_every)


def _warm_start(recipe: Recipe, table: RunTable) -> sft.Config | None:
    """Return the configuration of [sft]; None if the run starts from [run] model."""
    if "sft" not in recipe.tables:
        if table.model is None:
            raise UserError(f"{recipe.source}: expected [run] model, or a table [sft] for a warm start; found neither")
        return None
    out = _directory(table.out, -1) / "checkpoint"
    return recipe.config("sft", sft.Config, out=out, **({"model": table.model} if table.model else {}))


def _iteration(recipe: Recipe, table: RunTable, number: int, policies: Mapping[int, str], first: str) -> Iteration:
    """Return the configurations of one iteration.

    Args:
      policies: index of an iteration → the model that it ends with; -1 is the start.
      first: model that the run starts from: the reference of the KL term, and the start of a critic.
    """
    here, policy = _directory(table.out, number), policies[number - 1]
    stale = min(number, table.overlap)
    where = {"out": here / "trajectories", "staleness": stale if table.overlap else None, **WHOLE, **_where(table)}
    sample = recipe.config("rollout", rollout.Config, model=policies[number - 1 - stale], **where)
    if sample.num_questions is None:
        raise UserError(f"{recipe.source}: [rollout] lacks num_questions, the number of questions of one iteration")
    questions = sample.num_questions * (1 + (sample.refill or 0))  # replacements are no questions of later iterations
    sample = dataclasses.replace(
        sample, skip_questions=sample.skip_questions + number * questions, seed=sample.seed + number
    )
    cut = recipe.config("segment", segment.Config, trajectories=sample.out, out=here / "cutpoints", **WHOLE)
    value = recipe.config(
        "estimate", estimate.Config, cutpoints=cut.out, model=policy, out=here / "advantages", **WHOLE, **_where(table)
    )
    learn = recipe.config(
        "train", train.Config, advantages=(value.out,), model=policy, out=here / "checkpoint", **_where(table)
    )
    oldest = max(0, number + 1 - (learn.replay or 1))
    learn = dataclasses.replace(
        learn,
        advantages=tuple(_directory(table.out, i) / "advantages" for i in range(oldest, number + 1)),
        seed=learn.seed + number,
        reference_model=(learn.reference_model or first) if learn.beta else None,
        total_steps=learn.total_steps or _scheduled_steps(recipe, table, sample, learn),
    )
    if value.estimator == "critic":
        trained = f"{policy}/{CRITIC}" if number and learn.critic_learning_rate else None
        value = dataclasses.replace(value, critic=trained or value.critic or first)
    return Iteration(sample, cut, dataclasses.replace(value, seed=value.seed + number), learn)


def _scheduled_steps(recipe: Recipe, table: RunTable, sample: rollout.Config, learn: train.Config) -> int | None:
    """Return the steps of one learning-rate schedule over the whole run.

    None for a constant learning rate: the number of iterations then stays out of the fingerprint, so a finished run can
    be continued with more iterations.

    Raises:
      UserError: a schedule in a run whose number of steps depends on what is sampled.
    """
    if learn.lr_scheduler_type == "constant" and learn.warmup_ratio == 0 and not learn.warmup_steps:
        return None
    varies = sample.num_questions is None or sample.in_trees or sample.refill
    if varies or learn.train_rollouts != "none" or learn.replay or learn.drop_uniform_groups:
        raise UserError(
            f"{recipe.source}: [train] lacks total_steps: with trees, refill, rollouts, replay or dropped groups the "
            "length of the learning-rate schedule is not known in advance"
        )
    assert sample.num_questions is not None, "checked above"
    trajectories = sample.num_questions * sample.responses_per_question
    return table.iterations * learn.epochs * math.ceil(trajectories / learn.batch_size)


def _directory(out: AnyPath, iteration: int) -> AnyPath:
    """Return the directory of an iteration; -1 is the start."""
    return out / ("start" if iteration < 0 else f"{iteration:03d}")
