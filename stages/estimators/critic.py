"""Estimate V with a learned value head at every state where a segment starts, and advantages by GAE(λ).

One step of GAE is one segment: a token with `--partition token` (as in PPO), or a segment of another partition. The
reward comes at the end of the response. `stages.training.critic` trains the critic towards advantage + value_start.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from stages.configs.estimate import Config
from stages.core.errors import UserError
from stages.core.paths import AnyPath
from stages.core.progress import Progress
from stages.estimators import EstimatedChunk, Estimator, PreparedPart
from stages.estimators.rows import build_rows, count_ungradable
from stages.estimators.segments import SegmentBatch, check_vocabulary, chunk_by_question, load_segments
from stages.maths.advantages import chain_advantages
from stages.maths.gae import generalized_advantages
from stages.maths.ragged import Ragged, offsets_of
from stages.models import checkpoints, devices, loading
from stages.optimization.critic import Critic, CriticExample, has_head, open_critic, score_states
from stages.sampling.pool import SamplerPool
from stages.shards.lineage import model_source
from stages.shards.parts import Artefact, Part

RECORDED = ("estimator", "gae_lambda", "gamma", "dtype")
"""Options that this estimator reads."""


def prepare(
    options: Config,
    cutpoints: Artefact,
    trajectories: Artefact,
    out: AnyPath,
    progress: Progress,
    pool: SamplerPool,
) -> Estimator:
    """Prepare the estimator, as `stages.estimators.Prepare` describes."""
    if options.critic is None:
        raise UserError("--estimator critic needs --critic: a critic that `spo train` wrote, or a model to start one")
    name = options.critic
    directory = checkpoints.resolve(name)
    critic_source = dataclasses.replace(model_source(name, checkpoints.digest(directory), out), stage="critic")

    def read(part: Part) -> PreparedPart:
        batch = load_segments(cutpoints, part, trajectories)
        check_states(batch, directory)
        if busy := devices.use_threads(options.threads):
            progress.note(busy)
        critic = open_critic(directory, device=options.device, dtype=options.dtype)
        chunks = chunk_by_question(batch, options.chunk_trajectories)
        return PreparedPart(chunks, lambda chunk, sampler: estimate(options, batch, chunk, critic))

    notes = () if has_head(directory) else (f"{name} has no value head: it starts at zero, and so do all values",)
    return Estimator(options, RECORDED, read, (critic_source,), None, ("torch", "transformers"), notes)


def check_states(batch: SegmentBatch, directory: Path) -> None:
    """Check that the critic can evaluate every state.

    Raises:
      UserError: a state is empty, longer than the context of the critic, or holds an unknown token.
    """
    config = loading.load_config(directory)
    check_vocabulary(batch, loading.vocabulary_size(config), str(directory))
    context = loading.context_length(config)
    segments = batch.segments
    tokens = batch.prompts.lengths[segments.trajectory] + segments.start
    for wrong, problem in (
        (tokens == 0, "an empty prompt; expected at least one token"),
        (tokens > context, f"a state longer than the context of the critic {directory}, {context} tokens"),
    ):
        if wrong.any():
            row = int(segments.trajectory[wrong.argmax()])
            raise UserError(f"trajectory {batch.trajectories['trajectory_id'][row]} has {problem}")


def estimate(options: Config, batch: SegmentBatch, chunk: range, critic: Critic) -> EstimatedChunk:
    """Estimate the rows of a chunk of trajectories."""
    segments, earned = batch.segments_of(chunk), batch.rewards_of(chunk)
    offsets = offsets_of(np.bincount(segments.trajectory, minlength=len(chunk)))
    starts = Ragged(segments.start, offsets)
    examples = [
        CriticExample(np.concatenate([batch.prompts[row], batch.responses[row]]), batch.prompts[row].size + starts[i])
        for i, row in enumerate(chunk)
    ]
    values = np.empty(len(segments))
    for i, found in score_states(critic, examples):
        values[offsets[i] : offsets[i + 1]] = found
    rewards = np.zeros(len(segments))
    rewards[segments.is_last] = np.nan_to_num(earned)  # the reward of a response belongs to its last segment
    advantage, _ = generalized_advantages(
        Ragged(values, offsets), Ragged(rewards, offsets), options.gamma, options.gae_lambda
    )
    # `chain_advantages` pairs the values at both ends of each segment; its own advantage is λ = 0, γ = 1. In a response
    # that could not be graded, it is NaN.
    ends = chain_advantages(segments, values, earned)
    ends = ends._replace(advantage=np.where(np.isnan(ends.advantage), np.nan, advantage))
    no_rewards = Ragged(np.empty(0, np.float32), np.zeros(len(segments) + 1, np.int64))
    return build_rows(batch.rows[batch.rows_of(chunk)], ends, no_rewards, counts=count_ungradable(earned))
