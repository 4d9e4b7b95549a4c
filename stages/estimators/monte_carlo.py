"""The Monte Carlo estimator: fresh rollouts of the sampling policy from every state where a segment begins.

They are drawn under the same temperature and stop rules as the trajectories and graded on the whole response. The value
of a state is their mean; a segment's advantage is the difference of the values at its two ends (arXiv 2505.23564,
SPO-chain). Equal states of a question are estimated once.

A fixed number N of rollouts gives unbiased values. With MIN..MAX more are drawn where the rewards so far leave doubt,
and none where the responses to a question leave none: fewer rollouts for about the same certainty, at the price of a
small bias towards 0 and 1 (`stages.maths.allocation`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.configs.estimate import (
    CONFIDENCE,
    INTERVAL_WIDTH,
    EstimatorName,
    EstimatorOptions,
    rollout_range,
    select_settings,
)
from stages.configs.shared import EngineOptions
from stages.core.config import option
from stages.core.errors import UserError
from stages.core.progress import Progress
from stages.estimators import Estimated, Estimator, Portion
from stages.estimators.budget import Allotment, adaptive, fixed
from stages.estimators.rollouts import Drawing, distinct_states, draw
from stages.estimators.rows import check_chances, estimated
from stages.estimators.segments import Cuts, check_room, check_vocabulary, chunk_by_question, load_cuts
from stages.maths.advantages import Advantages, chain_advantages
from stages.maths.ragged import gather_ranges
from stages.maths.values import monte_carlo_values
from stages.models import checkpoints, loading
from stages.sampling.engines import engine_packages, with_engine
from stages.sampling.pool import SamplerPool
from stages.sampling.protocol import SamplingParams, batch_dependent
from stages.shards.lineage import model_source, task_source
from stages.shards.origin import check_sampling_model, sampling_model
from stages.shards.parts import Artefact, Part, artefact_source
from stages.tasks import open_task


@dataclass(frozen=True, kw_only=True)
class Settings(EngineOptions):
    """The options that this estimator reads, with what their defaults stand for."""

    estimator: EstimatorName = option("As given.")
    rollouts: str = option("As given: N or MIN..MAX.")
    interval_width: float | None = option("As given; None for one number of rollouts.")
    confidence: float | None = option("As given; None for one number of rollouts.")
    budget: int | None = option("As given.")
    seed: int = option("As given.")
    model: str = option("As given or recorded.", result=False)
    task: str = option("As given or recorded.")
    task_arg: tuple[str, ...] = option("As given or recorded.")
    temperature: float = option("As given or recorded.")
    top_p: float = option("As given or recorded.")
    top_k: int = option("As given or recorded.")
    max_tokens: int = option("As given or recorded.")
    stop: tuple[str, ...] = option("As given or recorded.")
    unfinished_reward: float = option("As given or recorded.")
    best_of: int | None = option("As given.")


def prepare(
    options: EstimatorOptions,
    cutpoints: Artefact,
    trajectories: Artefact,
    out: Path,
    progress: Progress,
    pool: SamplerPool,
) -> Estimator:
    """As `stages.estimators.Prepare`."""
    settings = complete(options, trajectories)
    task = open_task(settings.task, None, settings.task_arg)
    directory = checkpoints.resolve(settings.model)
    model = model_source(settings.model, checkpoints.digest(directory), out)
    settings = with_engine(settings, progress)

    def read(part: Part) -> Portion:
        cuts = load_cuts(cutpoints, part, trajectories)
        check_room(cuts, settings.max_tokens)
        if settings.best_of is not None:
            check_chances(cuts.trajectories["reward"].to_numpy(), cuts.trajectories["trajectory_id"])
        check_vocabulary(cuts, loading.vocabulary_size(loading.load_config(directory)), settings.model)
        allotment = allot(settings, cutpoints, trajectories)
        drawing = Drawing(
            pool.open(model_dir=directory, **settings.engine_options(), progress=progress),
            loading.load_tokenizer(directory),
            task,
            SamplingParams(settings.temperature, settings.top_p, settings.top_k, settings.stop),
            settings.max_tokens,
            settings.unfinished_reward,
            progress,
        )
        return Portion(
            chunk_by_question(cuts, options.chunk_trajectories),
            lambda chunk: estimate_chunk(settings, cuts, chunk, allotment, drawing),
        )

    verifier = task_source(settings.task, None, task.digest, out)
    # A budget is shared out among all parts, so each of them depends on the others.
    whole = (artefact_source(cutpoints, out),) if settings.budget is not None else ()
    notes = check_sampling_model(trajectories, model, named=options.model is not None)
    return Estimator(settings, read, (verifier, *whole), model, engine_packages(settings.engine), notes)


def complete(options: EstimatorOptions, trajectories: Artefact) -> Settings:
    """The options with what was left out taken from the trajectories' lineage.

    Raises:
      UserError: the trajectories come from elsewhere and do not say; naming the flags that must.
    """
    lineage = trajectories.lineage
    unsaid = {"top_p": 1.0, "top_k": 0, "stop": (), "unfinished_reward": 0.0}
    sampled_with: dict[str, Any] = unsaid | (lineage.config if lineage else {})
    sampled_with["model"] = None if options.model else sampling_model(trajectories)
    names = ("model", "task", "temperature", "max_tokens", "top_p", "top_k", "stop", "unfinished_reward")
    values: dict[str, Any] = {name: getattr(options, name) for name in names}
    values |= {name: sampled_with.get(name) for name, value in values.items() if value is None}
    if absent := [name for name in names if values[name] is None]:
        flags = " ".join("--" + name.replace("_", "-") for name in absent)
        raise UserError(f"{trajectories.path} does not say how it was sampled: pass {flags}")
    values["stop"] = tuple(values["stop"])
    values["task_arg"] = options.task_arg if options.task or options.task_arg else tuple(sampled_with["task_arg"])
    least, most = rollout_range(options.rollouts)
    values["rollouts"] = str(most)
    if least < most:
        values["rollouts"] = f"{least}..{most}"
        values["interval_width"] = options.interval_width or INTERVAL_WIDTH
        values["confidence"] = options.confidence or CONFIDENCE
    return select_settings(Settings, options, **values)


def estimate_chunk(settings: Settings, cuts: Cuts, chunk: range, allotment: Allotment, drawing: Drawing) -> Estimated:
    """Rollouts from the distinct states of some trajectories, and the rows that follow."""
    states, state_of = distinct_states(cuts, chunk, settings.seed)
    drawn = draw(states, allotment, drawing)
    decided = [allotment.decided.get(state.question_id, np.nan) for state in states]
    # One more state, which −1 names: without rollouts and value, for segments that begin at none.
    starts, lengths = drawn.rewards.offsets, np.append(drawn.rewards.lengths, 0)
    rewards = gather_ranges(drawn.rewards.values, starts[state_of], lengths[state_of])
    values = monte_carlo_values(rewards)
    value = np.where(values.rollouts > 0, values.mean, np.array([*decided, np.nan])[state_of])

    counts = {"states": len(states), "rollouts": int(lengths.sum())}
    if allotment.is_adaptive:
        questions = {state.question_id for state in states}
        counts["rollouts_saved"] = len(states) * allotment.most - counts["rollouts"]
        counts["questions_decided"] = len(questions & allotment.decided.keys())
    counts |= {"sampled": drawn.sampled, "ungradable": drawn.ungradable}
    counts |= batch_dependent(drawing.sampler, counts["rollouts"])
    rows, advantages = chain_rows(cuts, chunk, value)
    done = estimated(rows, advantages, rewards, counts=counts, best_of=settings.best_of)
    return replace(done, figures={"prefilled": drawn.prefilled})


def chain_rows(cuts: Cuts, chunk: range, value: NDArray[np.float64]) -> tuple[pa.Table, Advantages]:
    """Cutpoints rows and advantages of some trajectories, from the value [S] of each segment's start, or NaN."""
    return cuts.rows[cuts.rows_of(chunk)], chain_advantages(cuts.segments_of(chunk), value, cuts.rewards_of(chunk))


def allot(settings: Settings, cutpoints: Artefact, trajectories: Artefact) -> Allotment:
    """How many rollouts each state may have. Raises as `allotment.adaptive`."""
    least, most = rollout_range(settings.rollouts)
    if settings.interval_width is None or settings.confidence is None:
        return fixed(most)
    return adaptive(least, most, settings.interval_width, settings.confidence, settings.budget, cutpoints, trajectories)
