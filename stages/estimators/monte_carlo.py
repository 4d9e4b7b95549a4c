"""Estimate values by Monte Carlo: fresh rollouts of the sampling policy from every state where a segment starts.

Rollouts are sampled with the temperature and stop rules of the trajectories, and the whole response is graded. The
value of a state is their mean reward; the advantage of a segment is the difference of the values at its ends (arXiv
2505.23564, SPO-chain). Equal states of a question are estimated once.

A fixed number N of rollouts gives unbiased values. With MIN..MAX, more rollouts are sampled where the rewards so far
leave doubt, and none for questions whose responses agree. This needs fewer rollouts for about the same certainty, with
a small bias towards 0 and 1 (`stages.maths.allocation`).

The estimator `forward` has a prior besides the rollouts, whose number may be 0 (`stages.estimators.forward`).

A rollout that could not be graded is left out of the mean. A response that could not be graded gets no rollouts and
has no rows; neither has a segment with an end from which no rollout could be graded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.configs.estimate import (
    CONFIDENCE,
    INTERVAL_WIDTH,
    PRIOR_WEIGHT,
    Config,
    rollout_range,
)
from stages.core.errors import UserError
from stages.core.paths import AnyPath
from stages.core.progress import Progress
from stages.estimators import EstimatedChunk, Estimator, PreparedPart
from stages.estimators.budget import RolloutBudget, adaptive_budget, fixed_budget
from stages.estimators.forward import Prior, check_rewards, find_template
from stages.estimators.kept_rollouts import build_rollouts, find_rho
from stages.estimators.rollouts import RolloutSampling, distinct_states, sample_rollouts
from stages.estimators.rows import build_rows, check_probabilities, count_ungradable
from stages.estimators.segments import SegmentBatch, check_room, check_vocabulary, chunk_by_question, load_segments
from stages.maths.advantages import Advantages, chain_advantages
from stages.maths.ragged import gather_ranges
from stages.maths.shrinkage import shrink
from stages.maths.values import monte_carlo_values
from stages.models import checkpoints, loading
from stages.responses.grading import LengthPenalty
from stages.sampling.engines import engine_packages, with_engine
from stages.sampling.pool import SamplerPool
from stages.sampling.protocol import SamplingParams, engine_counts
from stages.shards.lineage import model_source, task_source
from stages.shards.origin import check_sampling_model, sampling_model
from stages.shards.parts import Artefact, Part, artefact_source
from stages.tasks import open_task

T = TypeVar("T")

RECORDED = (
    "estimator",
    "rollouts",
    "interval_width",
    "confidence",
    "budget",
    "seed",
    "task",
    "task_arg",
    "temperature",
    "top_p",
    "top_k",
    "max_tokens",
    "stop",
    "unfinished_reward",
    "best_of",
    "engine",
    "dtype",
    "max_model_len",
    "engine_arg",
)
"""Options that this estimator reads."""
_RECORDED_PRIOR = ("prior_weight", "answer_template")


def prepare(
    options: Config,
    cutpoints: Artefact,
    trajectories: Artefact,
    out: AnyPath,
    progress: Progress,
    pool: SamplerPool,
) -> Estimator:
    """Prepare the estimator, as `stages.estimators.Prepare` describes."""
    named_model = options.model is not None
    options = complete(options, trajectories)
    model_name, task_name, max_tokens = resolved(options.model), resolved(options.task), resolved(options.max_tokens)
    task = open_task(task_name, None, options.task_arg)
    directory = checkpoints.resolve(model_name)
    model = model_source(model_name, checkpoints.digest(directory), out)
    options = with_engine(options, progress)
    rho = find_rho(options, cutpoints)
    samples = options.rollouts != "0"
    if options.estimator == "forward":
        check_rewards(trajectories)

    def read(part: Part) -> PreparedPart:
        batch = load_segments(cutpoints, part, trajectories)
        if samples:
            check_room(batch, max_tokens)
        if options.best_of is not None:
            check_probabilities(batch.trajectories["reward"].to_numpy(), batch.trajectories["trajectory_id"])
        check_vocabulary(batch, loading.vocabulary_size(loading.load_config(directory)), model_name)
        budget = make_budget(options, cutpoints, trajectories)
        tokenizer = loading.load_tokenizer(directory)
        prior = None
        if options.estimator == "forward" and len(batch.prompts):
            from stages.estimators.answer_scores import open_prior  # imports torch

            template = find_template(options, task_name, str(tokenizer.decode(batch.prompts[0])))
            states, _ = distinct_states(batch, range(batch.trajectories.num_rows), options.seed)
            prior = open_prior(options, directory, template, states, progress)
        sampling = RolloutSampling(
            pool.open(model_dir=directory, **options.engine_options(), progress=progress) if samples else None,
            tokenizer,
            task,
            sampling_params(options),
            max_tokens,
            resolved(options.unfinished_reward),
            progress,
            _length_penalty(trajectories, max_tokens),
            keep=options.keep_rollouts,
        )
        return PreparedPart(
            chunk_by_question(batch, options.chunk_trajectories),
            lambda chunk, sampler: estimate_chunk(
                options, batch, chunk, budget, replace(sampling, sampler=sampler), rho, prior
            ),
            sampling.sampler,
        )

    verifier = task_source(task_name, None, task.digest, out)
    # A budget is divided among all parts, so each part depends on all the others.
    all_cutpoints = (artefact_source(cutpoints, out),) if options.budget is not None else ()
    notes = check_sampling_model(trajectories, model, named=named_model)
    packages = engine_packages(options.engine)
    recorded = (*RECORDED, *_RECORDED_PRIOR) if options.estimator == "forward" else RECORDED
    inputs = (verifier, *all_cutpoints)
    return Estimator(options, recorded, read, inputs, model, packages, notes, options.keep_rollouts)


def _length_penalty(trajectories: Artefact, max_tokens: int) -> LengthPenalty | None:
    """Return the penalty of long responses that was recorded with the trajectories; None if there was none."""
    recorded = trajectories.lineage.config if trajectories.lineage else {}
    if recorded.get("overlong_buffer") is None:
        return None
    return LengthPenalty(max_tokens, recorded["overlong_buffer"], recorded.get("overlong_penalty", 1.0))


def complete(options: Config, trajectories: Artefact) -> Config:
    """Fill in the options that default to the values recorded with the trajectories.

    Raises:
      UserError: a value is neither given nor recorded; the message names the missing flags.
    """
    lineage = trajectories.lineage
    defaults = {"top_p": 1.0, "top_k": 0, "stop": (), "unfinished_reward": 0.0}
    recorded: dict[str, Any] = defaults | (lineage.config if lineage else {})
    recorded["model"] = None if options.model else sampling_model(trajectories)
    names = ("model", "task", "temperature", "max_tokens", "top_p", "top_k", "stop", "unfinished_reward")
    values: dict[str, Any] = {name: getattr(options, name) for name in names}
    values |= {name: recorded.get(name) for name, value in values.items() if value is None}
    if missing := [name for name in names if values[name] is None]:
        flags = " ".join("--" + name.replace("_", "-") for name in missing)
        raise UserError(f"{trajectories.path} does not record how it was sampled: pass {flags}")
    values["stop"] = tuple(values["stop"])
    # Options of a task belong to its name: with --task, those of the recorded task do not apply.
    values["task_arg"] = options.task_arg if options.task or options.task_arg else tuple(recorded["task_arg"])
    minimum, maximum = rollout_range(options.rollouts, options.estimator)
    values["rollouts"] = str(maximum)  # the same text for the default, N and N..N, so the same fingerprint
    if options.estimator == "forward" and maximum:
        values["prior_weight"] = options.prior_weight or PRIOR_WEIGHT
    if minimum < maximum:
        values["rollouts"] = f"{minimum}..{maximum}"
        values["interval_width"] = options.interval_width or INTERVAL_WIDTH
        values["confidence"] = options.confidence or CONFIDENCE
    return replace(options, **values)


def resolved(value: T | None) -> T:
    """Return an option that `complete` has filled in, with a type that excludes None."""
    assert value is not None
    return value


def sampling_params(options: Config) -> SamplingParams:
    """Return the sampling parameters of options that `complete` has filled in."""
    return SamplingParams(
        resolved(options.temperature), resolved(options.top_p), resolved(options.top_k), resolved(options.stop)
    )


def make_budget(options: Config, cutpoints: Artefact, trajectories: Artefact) -> RolloutBudget:
    """Return how many rollouts each state may have.

    Raises:
      UserError: as `stages.estimators.budget.adaptive_budget`.
    """
    minimum, maximum = rollout_range(options.rollouts, options.estimator)
    if options.interval_width is None or options.confidence is None:
        return fixed_budget(maximum)
    width, confidence = options.interval_width, options.confidence
    return adaptive_budget(minimum, maximum, width, confidence, options.budget, cutpoints, trajectories)


def estimate_chunk(
    options: Config,
    batch: SegmentBatch,
    chunk: range,
    budget: RolloutBudget,
    sampling: RolloutSampling,
    rho: float | None = None,
    prior: Prior | None = None,
) -> EstimatedChunk:
    """Sample rollouts from the distinct states of a chunk of trajectories and estimate its rows.

    Args:
      rho: of the mask of the rollouts, if they are kept.
      prior: of the values, with --estimator forward.
    """
    states, state_of = distinct_states(batch, chunk, options.seed)
    rollouts = sample_rollouts(states, budget, sampling)
    decided = [budget.decided.get(state.question_id, np.nan) for state in states]
    # The index −1 of segments without a state reads the last element: a state without rollouts and value is appended.
    starts, lengths = rollouts.rewards.offsets, np.append(rollouts.rewards.lengths, 0)
    rewards = gather_ranges(rollouts.rewards.values, starts[state_of], lengths[state_of])
    values = monte_carlo_values(rewards)
    value = np.where(values.rollouts > 0, values.mean, np.array([*decided, np.nan])[state_of])
    if prior is not None:
        expected = np.append(prior(states), np.nan)[state_of]
        value = shrink(values.mean, values.rollouts, expected, options.prior_weight or PRIOR_WEIGHT)

    drawn = int(lengths.sum()) + rollouts.ungradable
    counts = {"states": len(states), "rollouts": drawn}
    if budget.is_adaptive:
        questions = {state.question_id for state in states}
        counts["rollouts_saved"] = len(states) * budget.maximum - counts["rollouts"]
        counts["questions_decided"] = len(questions & budget.decided.keys())
    counts |= {"sampled": rollouts.sampled, "ungradable": rollouts.ungradable}
    counts |= count_ungradable(batch.rewards_of(chunk))
    counts |= engine_counts(sampling.sampler, drawn) if sampling.sampler else {}
    rows, advantages = chain_rows(batch, chunk, value)
    result = build_rows(rows, advantages, rewards, counts=counts, best_of=options.best_of)
    kept = None
    if rho is not None:
        kept = build_rollouts(batch, chunk, states, state_of, rollouts.kept, rho, sampling.tokenizer)
    return replace(result, figures={"prefilled": rollouts.prefilled}, rollouts=kept)


def chain_rows(batch: SegmentBatch, chunk: range, value: NDArray[np.float64]) -> tuple[pa.Table, Advantages]:
    """Return the rows of the cutpoints of a chunk, and their advantages.

    Args:
      value: [S] of each segment's start; NaN where it is not estimated.
    """
    rows = batch.rows_of(chunk)
    segments, rewards = batch.segments_of(chunk), batch.rewards_of(chunk)
    return batch.rows[rows], chain_advantages(segments, value, rewards, batch.needs_value[rows])
