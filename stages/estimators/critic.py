"""The critic as estimator: V of every state where a segment begins, by a learned value head; advantages by GAE(λ).

One step of GAE is one segment: a token under `--partition token` (PPO as it is known), or whatever the partition made.
The reward stands at the response's end. `stages.training.critic` moves the critic towards advantage + value_start.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from stages.configs.estimate import EstimatorName, EstimatorOptions, select_settings
from stages.core.config import option
from stages.core.errors import UserError
from stages.core.progress import Progress
from stages.estimators import Estimated, Estimator, Portion
from stages.estimators.rows import estimated
from stages.estimators.segments import Cuts, check_vocabulary, chunk_by_question, load_cuts
from stages.maths.advantages import chain_advantages
from stages.maths.gae import generalized_advantages
from stages.maths.ragged import Ragged, offsets_of
from stages.models import checkpoints, loading
from stages.optimization.critic import Critic, CriticExample, has_head, open_critic, score_states
from stages.sampling.pool import SamplerPool
from stages.shards.lineage import model_source
from stages.shards.parts import Artefact, Part


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options that this estimator reads."""

    estimator: EstimatorName = option("As given.")
    gae_lambda: float = option("As given.")
    gamma: float = option("As given.")
    dtype: str = option("As given.")


def prepare(
    options: EstimatorOptions,
    cutpoints: Artefact,
    trajectories: Artefact,
    out: Path,
    progress: Progress,
    pool: SamplerPool,
) -> Estimator:
    """As `stages.estimators.Prepare`."""
    if options.critic is None:
        raise UserError("--estimator critic needs --critic: a critic that `spo train` wrote, or a model to begin with")
    name, settings = options.critic, select_settings(Settings, options)
    directory = checkpoints.resolve(name)
    made_with = dataclasses.replace(model_source(name, checkpoints.digest(directory), out), stage="critic")

    def read(part: Part) -> Portion:
        cuts = load_cuts(cutpoints, part, trajectories)
        check_states(cuts, directory)
        if options.threads:
            torch.set_num_threads(options.threads)
        critic = open_critic(directory, device=options.device, dtype=options.dtype)
        chunks = chunk_by_question(cuts, options.chunk_trajectories)
        return Portion(chunks, lambda chunk: estimate(settings, cuts, chunk, critic))

    notes = () if has_head(directory) else (f"{name} has no value head: it starts at zero, and so does every value",)
    return Estimator(settings, read, (made_with,), None, ("torch", "transformers"), notes)


def check_states(cuts: Cuts, directory: Path) -> None:
    """Refuse what the critic cannot read.

    Raises:
      UserError: an empty state, one longer than its context, a token that it does not know.
    """
    config = loading.load_config(directory)
    check_vocabulary(cuts, loading.vocabulary_size(config), str(directory))
    room = loading.context_length(config)
    of = cuts.segments
    tokens = cuts.prompts.lengths[of.trajectory] + of.start
    for wrong, problem in (
        (tokens == 0, "an empty prompt, which is no state to value; expected at least one token"),
        (tokens > room, f"a state longer than the context of the critic {directory}, {room} tokens"),
    ):
        if wrong.any():
            raise UserError(
                f"trajectory {cuts.trajectories['trajectory_id'][int(of.trajectory[wrong.argmax()])]} has {problem}"
            )


def estimate(settings: Settings, cuts: Cuts, chunk: range, critic: Critic) -> Estimated:
    """The rows of some trajectories."""
    segments, earned = cuts.segments_of(chunk), cuts.rewards_of(chunk)
    offsets = offsets_of(np.bincount(segments.trajectory, minlength=len(chunk)))
    starts = Ragged(segments.start, offsets)
    visited = [
        CriticExample(np.concatenate([cuts.prompts[row], cuts.responses[row]]), cuts.prompts[row].size + starts[i])
        for i, row in enumerate(chunk)
    ]
    values = np.empty(len(segments))
    for i, found in score_states(critic, visited):
        values[offsets[i] : offsets[i + 1]] = found
    rewards = np.zeros(len(segments))
    rewards[segments.is_last] = earned
    advantage, _ = generalized_advantages(
        Ragged(values, offsets), Ragged(rewards, offsets), settings.gamma, settings.gae_lambda
    )
    ends = chain_advantages(segments, values, earned)._replace(advantage=advantage)
    no_rollout = Ragged(np.empty(0, np.float32), np.zeros(len(segments) + 1, np.int64))
    return estimated(cuts.rows[cuts.rows_of(chunk)], ends, no_rollout)
