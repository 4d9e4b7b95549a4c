"""`spo plan`: predict the tokens, seconds, files and memory of a run from its recipe, before it begins.

The lengths of earlier responses give the tokens of new ones, of trees and of rollouts (`stages.maths.expected_tokens`);
the partition of the recipe is applied to the earlier responses, so that the states of an estimation are counted. What
training changes (longer responses, fewer cutpoints) is not predicted.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, fields
from itertools import accumulate
from operator import mul
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.configs import evaluate, sft
from stages.configs.estimate import rollout_range
from stages.configs.plan import Config
from stages.configs.rollout import SEGMENT_TOKENS
from stages.configs.rollout import Config as Rollout
from stages.core.errors import UserError
from stages.core.progress import Progress, Silent
from stages.maths.advantages import states_to_estimate
from stages.maths.expected_tokens import first_of_equal, rest_tokens, survival, tree_tokens
from stages.maths.partition import find_cutpoints
from stages.models import checkpoints, devices, loading
from stages.models.memory import Memory, Shape, sampling_memory, training_memory
from stages.models.presets import make_config
from stages.optimization.packing import ROW_LIMIT
from stages.pipeline.planning import Iteration, Plan, make_plan
from stages.pipeline.profile import Profile, assume, measure
from stages.segment import cutpoint_table, open_partition
from stages.shards.tables import ragged
from stages.tasks import open_task

_ROWS_ON_CPU, _ROWS_ON_GPU = 256, 512
"""Samples in flight where --max-batch-rows leaves their number to the embedded engine."""


@dataclass(frozen=True)
class Amounts:
    """What one stage takes; a figure is NaN where it is unknown.

    Attributes:
      prefilled, sampled: tokens of prompts and prefixes, and tokens that the engine samples.
      trained: tokens that carry loss, over all passes.
      fed: tokens that training passes through the model.
      seconds: of one worker, without starting processes, loading and saving.
      bytes: on disk.
    """

    prefilled: float = 0.0
    sampled: float = 0.0
    trained: float = 0.0
    fed: float = 0.0
    seconds: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    def __mul__(self, times: float) -> Amounts:
        return Amounts(*(getattr(self, one.name) * times for one in fields(self)))


@dataclass(frozen=True)
class StagePrediction:
    """The prediction of one stage.

    Attributes:
      times: how often it runs.
      each: of one run of it.
      devices: workers that it runs on at the same time.
    """

    stage: str
    times: int
    each: Amounts
    devices: int = 1

    @property
    def total(self) -> Amounts:
        """Return the amounts of all runs of the stage."""
        return self.each * self.times


@dataclass(frozen=True)
class Prediction:
    """The prediction of a run.

    Attributes:
      stages: in order.
      sampling, training: memory of a sampler and of a trainer; None if the model is not on this machine.
      notes: what was measured and what was assumed, in lines.
    """

    out: str
    iterations: int
    stages: tuple[StagePrediction, ...]
    sampling: Memory | None
    training: Memory | None
    notes: tuple[str, ...]
    config: Config

    @property
    def total(self) -> Amounts:
        """Return the amounts of the whole run."""
        return sum((one.total for one in self.stages), Amounts())


def run(config: Config, progress: Progress = Silent()) -> Prediction:
    """Predict a run.

    Raises:
      UserError: an invalid recipe, or --like is no run.
    """
    plan = make_plan(config)
    if not plan.iterations:
        raise UserError(f"{config.recipe}: expected at least one iteration to predict; found iterations = 0")
    first = plan.iterations[0]
    profile = measure(config, config.like) if config.like else assume(config, first.rollout)
    shape = _shape(plan.start, first.rollout.model)
    sampling, training = _memory(shape, first, profile) if shape else (None, None)
    return Prediction(
        str(plan.out),
        len(plan.iterations),
        tuple(_stages(plan, first, profile, shape)),
        sampling,
        training,
        profile.notes,
        config,
    )


def _shape(start: sft.Config | None, model: str) -> Shape | None:
    """Return the shape of the model that a run begins with; None if it is not in a directory on this machine."""
    if start and start.preset:
        return Shape.of_config(make_config(start.preset))
    name = start.model if start and start.model else model
    return Shape.of_config(loading.load_config(checkpoints.resolve(name))) if Path(name).is_dir() else None


def _memory(shape: Shape, first: Iteration, profile: Profile) -> tuple[Memory, Memory]:
    """Return the memory of a sampler and of a trainer with the longest responses, in the number formats used here."""
    longest = profile.prompt_tokens + first.rollout.max_tokens
    sampler, trainer = devices.pick_device(first.rollout.device), devices.pick_device(first.train.device)
    rows = first.rollout.max_batch_rows or (_ROWS_ON_CPU if sampler.type == "cpu" else _ROWS_ON_GPU)
    formats = devices.pick_dtype(first.rollout.dtype, sampler), devices.pick_dtype(first.train.dtype, trainer)
    batch = first.train.per_device_batch_size * longest
    return sampling_memory(shape, formats[0].itemsize, rows * longest), training_memory(
        shape,
        formats[1].itemsize,
        batch,
        checkpointing=first.train.gradient_checkpointing,
        adapter=first.train.lora_r is not None,
    )


def _stages(plan: Plan, first: Iteration, profile: Profile, shape: Shape | None) -> list[StagePrediction]:
    """Return the prediction of every stage, the warm start first."""
    times, workers = len(plan.iterations), (plan.cluster.samplers if plan.cluster else None) or 1
    trainers = (plan.cluster.trainers if plan.cluster else None) or 1
    sampled = _rollout(first.rollout, profile)
    estimated, kept = _estimate(first, profile)
    learned = _train(first, profile, sampled, kept)
    found = [
        StagePrediction("rollout", times, _timed("rollout", sampled, profile, sampled), workers),
        StagePrediction("segment", times, _timed("segment", Amounts(), profile, sampled)),
        StagePrediction("estimate", times, _timed("estimate", estimated, profile, sampled), workers),
        StagePrediction("train", times, _trained(learned, profile) + _checkpoints(plan, shape), trainers),
    ]
    if plan.start:
        found.insert(0, StagePrediction("sft", 1, _sft(plan.start, profile)))
    if plan.evaluations:
        evaluation = next(iter(plan.evaluations.values()))
        found.append(StagePrediction("eval", len(plan.evaluations), _eval(evaluation, profile), workers))
    return found


def _checkpoints(plan: Plan, shape: Shape | None) -> Amounts:
    """Return the bytes of a checkpoint, spread over the iterations if only the last ones are kept."""
    times = len(plan.iterations)
    kept = times if plan.keep is None else min(times, plan.keep.whole)
    return Amounts(bytes=shape.checkpoint_bytes * kept / times if shape else math.nan)


def _rollout(config: Rollout, profile: Profile) -> Amounts:
    """Return the tokens of sampling the responses of one iteration."""
    alive = survival(profile.lengths, profile.weights, config.max_tokens)
    if config.tree_budget is not None:
        tokens = float(config.tree_budget)
    elif config.branches is None:
        tokens = config.responses_per_question * float(alive.sum())
    elif config.branch_at:  # each chain, and at each of its cuts all but one of the branches, which begin anywhere
        fresh = sum(count - 1 for count in config.branches[1:])
        tokens = config.branches[0] * (float(alive.sum()) + fresh * _mean_rest(alive))
    else:
        tokens = tree_tokens(alive, config.branches, config.segment_tokens or SEGMENT_TOKENS)
    questions = (config.num_questions or 0) * _attempts(config, profile)
    return Amounts(prefilled=questions * profile.prompt_tokens, sampled=questions * tokens)


def _attempts(config: Rollout, profile: Profile) -> float:
    """Return the expected number of questions that are tried for a place in the batch (--refill)."""
    return sum(profile.agreeing**k for k in range(1 + (config.refill or 0)))


def _mean_rest(alive: NDArray[np.float64]) -> float:
    """Return the expected tokens of a rollout from a token of a response drawn at random."""
    return float(alive @ rest_tokens(alive)) / float(alive.sum())


@dataclass(frozen=True)
class _Kept:
    """The rollouts of one response that are trained on.

    Attributes:
      rollouts, tokens: their number, and their tokens without the response before their state.
      middle: mean position of their states.
    """

    rollouts: float = 0.0
    tokens: float = 0.0
    middle: float = 0.0


def _estimate(first: Iteration, profile: Profile) -> tuple[Amounts, _Kept]:
    """Return the tokens of the rollouts of one estimation, and those of a response that are kept for training."""
    if first.estimate.estimator not in ("monte-carlo", "forward") or first.rollout.in_trees:
        return Amounts(), _Kept()
    questions = first.rollout.num_questions or 0
    responses = questions * first.rollout.responses_per_question
    alive = survival(profile.lengths, profile.weights, first.rollout.max_tokens)
    states, last = _states(first, profile)
    rest = np.append(rest_tokens(alive), 0.0)
    count = sum(rollout_range(first.estimate.rollouts)) / 2
    tokens = count * float(states @ rest)
    amounts = Amounts(questions * profile.prompt_tokens + responses * last, responses * tokens)
    if first.train.train_rollouts == "none":
        return amounts, _Kept()
    middle = float(states @ np.arange(states.size)) / max(float(states.sum()), 1e-9)
    return amounts, _Kept(count * float(states.sum()), tokens, middle)


def _states(first: Iteration, profile: Profile) -> tuple[NDArray[np.float64], float]:
    """Return the number of distinct states per response by their position, [T + 1], and the mean last position."""
    limit = first.rollout.max_tokens
    if profile.responses is None or profile.source is None:
        return _assumed_states(first, profile, limit)
    table = profile.responses
    segment = dataclasses.replace(first.segment, partition=first.segment.partition or "cutpoints")
    cut, _ = open_partition(segment, profile.source)
    rows = cutpoint_table(table, segment.rho, cut)
    by_cutpoints = segment.partition == "cutpoints"
    start = rows["start"].to_numpy()
    needed = states_to_estimate(start, ragged(rows["cutpoints"]) if by_cutpoints else None)
    names = {name: row for row, name in enumerate(table["trajectory_id"].to_pylist())}
    row = np.array([names[name] for name in rows["trajectory_id"].to_pylist()], np.int64)[needed]
    start = start[needed].astype(np.int64)
    # Equal states of a question are estimated once.
    first_state = first_of_equal(ragged(table["token_ids"]), row, start, table["question_id"].to_pylist())
    weights = profile.weights[row] * first_state
    counts = np.bincount(np.minimum(start, limit), weights, limit + 1)
    last = np.zeros(table.num_rows)
    np.maximum.at(last, row, start)
    return np.asarray(counts, np.float64), float(profile.weights @ last)


def _assumed_states(first: Iteration, profile: Profile, limit: int) -> tuple[NDArray[np.float64], float]:
    """Return the states of a response of assumed length: its segments are assumed to be equally long."""
    length, config = int(profile.lengths[0]), first.segment
    size: float = {
        "cutpoints": config.interval / profile.cutpoint_share,
        "fixed": config.segment_tokens,
        "count": length / config.num_segments,
        "token": 1,
        "trajectory": length,
    }.get(config.partition or "cutpoints", 16)
    starts = np.unique(np.arange(0, length, max(size, 1)).astype(np.int64))
    counts = np.bincount(np.minimum(starts, limit), minlength=limit + 1).astype(np.float64)
    return counts, float(starts[-1])


def _train(first: Iteration, profile: Profile, sampled: Amounts, kept: _Kept) -> Amounts:
    """Return the tokens of one training."""
    config, rollout = first.train, first.rollout
    share = {
        "all": 1.0,
        "cutpoints": _cutpoint_share(first, profile),
        "entropy": config.mask_fraction,
        "random": config.mask_fraction,
    }[config.mask]
    questions: float = rollout.num_questions or 0
    own = sampled.sampled / _attempts(rollout, profile) / max(questions, 1)
    if config.drop_uniform_groups and not rollout.refill:
        questions *= 1 - profile.agreeing
    if rollout.in_trees:
        questions *= profile.signal  # nodes without an advantage are left out
        tokens, shared = own, _tree_prefixes(first, profile)
    else:
        count = rollout.responses_per_question
        tokens, shared = own + count * kept.tokens, count * _prefixes(first, profile, own / count, kept)
    return Amounts(
        trained=config.epochs * questions * tokens * share, fed=config.epochs * questions * (tokens + shared)
    )


def _prefixes(first: Iteration, profile: Profile, own: float, kept: _Kept) -> float:
    """Return the tokens of prompts and prefixes that are read for one response and its kept rollouts.

    Packed, they share their prefixes within a row, and are divided where a batch or a row ends.

    Args:
      own: tokens of the response.
    """
    config, examples = first.train, 1 + kept.rollouts
    packing = config.packing if config.packing is not None else bool(kept.rollouts)
    if not packing:
        return examples * profile.prompt_tokens + kept.rollouts * kept.middle
    row = ROW_LIMIT * (profile.prompt_tokens + float(profile.lengths.max()))
    divisions = (examples - 1) / config.batch_size + (own + kept.tokens) / row
    return profile.prompt_tokens + divisions * (profile.prompt_tokens + kept.middle)


def _tree_prefixes(first: Iteration, profile: Profile) -> float:
    """Return the tokens of the paths that are read before the nodes of a tree.

    Siblings are in one batch and read their path once. Groups of siblings are spread over the batches; those of a tree
    that meet in a batch share their prompt, and their paths if they share them.
    """
    config = first.rollout
    alive = survival(profile.lengths, profile.weights, config.max_tokens)
    branches = config.branches
    if branches is None or config.branch_at:  # each cut begins a group of siblings, at any of the tokens
        before = float(alive @ np.arange(alive.size)) / float(alive.sum())
        if branches:
            cuts, nodes = branches[0] * (len(branches) - 1), branches[0] * (1 + sum(branches[1:]))
        else:  # within a budget, each branch is cut from an earlier one
            cuts = (config.tree_budget or 0) / max(_mean_rest(alive), 1.0)
            nodes = 1 + 2 * cuts
        groups, paths = 1.0 + cuts, cuts * before
    else:
        size = config.segment_tokens or SEGMENT_TOKENS
        starts = [depth * size for depth in range(len(branches)) if depth * size < alive.size]
        counts = [float(alive[start]) * count for start, count in zip(starts, _groups(branches), strict=False)]
        groups, paths = sum(counts), sum(count * start for count, start in zip(counts, starts, strict=True))
        nodes = sum(count * width for count, width in zip(counts, branches, strict=False))
    trained = (config.num_questions or 0) * nodes * profile.signal
    batches = max(math.ceil(trained / first.train.batch_size), 1)
    apart = 1 - 1 / batches  # probability that a group is in another batch than the one of its parent
    return profile.prompt_tokens * batches * (1 - apart**groups) + paths * apart


def _groups(branches: tuple[int, ...]) -> list[int]:
    """Return the number of groups of siblings at each level: 1, 6, 36 for 6-6-6."""
    return [1, *accumulate(branches[:-1], mul)]


def _cutpoint_share(first: Iteration, profile: Profile) -> float:
    if profile.responses is None:
        return profile.cutpoint_share
    logprobs = ragged(profile.responses["logprobs"])
    weights = np.repeat(profile.weights, profile.lengths)
    return float(weights @ find_cutpoints(logprobs, first.segment.rho)) / float(weights.sum())


def _sft(config: sft.Config, profile: Profile) -> Amounts:
    per_step = profile.start_tokens or config.batch_size * float(profile.weights @ profile.lengths)
    tokens = per_step * config.steps if config.steps else 0.0
    return Amounts(trained=tokens, seconds=profile.seconds.get("sft", math.nan) * tokens if tokens else math.nan)


def _eval(config: evaluate.Config, profile: Profile) -> Amounts:
    """Return the amounts of one evaluation."""
    alive = survival(profile.lengths, profile.weights, max(config.max_tokens))
    questions = sum(_count_questions(config, *task) for task in config.tasks)
    tokens = questions * config.num_generations * float(alive.sum())
    seconds = profile.seconds.get("eval", math.nan) * tokens
    return Amounts(prefilled=questions * profile.prompt_tokens, sampled=tokens, seconds=seconds)


def _count_questions(config: evaluate.Config, task: str, data: str | None, args: tuple[str, ...]) -> int:
    available = len(open_task(task, data, args).questions(config.split)) - config.skip_questions
    return available if config.num_questions is None else min(config.num_questions, available)


def _timed(stage: str, tokens: Amounts, profile: Profile, sampled: Amounts) -> Amounts:
    """Return the amounts of a stage with its seconds and bytes."""
    rate, size = profile.seconds.get(stage, math.nan), profile.bytes.get(stage, math.nan)
    return tokens + Amounts(seconds=rate * (tokens.sampled or sampled.sampled), bytes=size * sampled.sampled)


def _trained(tokens: Amounts, profile: Profile) -> Amounts:
    return tokens + Amounts(seconds=profile.seconds.get("train", math.nan) * tokens.fed)
