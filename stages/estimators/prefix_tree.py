"""The prefix-tree estimator: an ordinary group of responses read as the tree that their shared prefixes form.

V of a state is the mean reward of the question's responses that begin with exactly its tokens, so it moves only where
responses part, and costs no rollout (TEMPO, arXiv 2509.18314). At a response's end V is its own reward.

The mean of the rewards that were seen from a *given* state is unbiased. Cutting where responses part (`spo segment
--partition branches`) chooses states by what followed, which weighs rare branches up.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from stages.configs.estimate import EstimatorName, EstimatorOptions, select_settings
from stages.core.config import option
from stages.core.progress import Progress
from stages.estimators import Estimated, Estimator, Portion
from stages.estimators.rows import count_questions, estimated
from stages.estimators.segments import Cuts, load_cuts, load_whole_questions
from stages.maths.advantages import Baseline, chain_advantages, leave_own_reward_out
from stages.maths.prefixes import responses_with_prefix, shared_prefixes
from stages.maths.ragged import gather_ranges
from stages.maths.values import monte_carlo_values
from stages.sampling.pool import SamplerPool
from stages.shards.parts import Artefact, Part
from stages.shards.tables import encode_names, ragged, rows_by_name


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options that this estimator reads."""

    estimator: EstimatorName = option("As given.")
    baseline: Baseline = option("As given.")
    keep_zero: bool = option("As given.")
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
    settings = select_settings(Settings, options)

    def read(part: Part) -> Portion:
        cuts = load_cuts(cutpoints, part, trajectories)
        columns = ["trajectory_id", "question_id", "token_ids", "reward"]
        _, group = load_whole_questions(cutpoints, part, trajectories, columns)
        return Portion.at_once(cuts.trajectories.num_rows, estimate(settings, cuts, group))

    return Estimator(settings, read)


def estimate(settings: Settings, cuts: Cuts, group: pa.Table) -> Estimated:
    """One row per segment of a part.

    Args:
      group: trajectory_id, question_id, token_ids and reward of all responses to its questions, question by question.
    """
    question, responses = encode_names(group["question_id"]), ragged(group["token_ids"])
    own = rows_by_name(cuts.trajectories["trajectory_id"], group["trajectory_id"])
    rewards = group["reward"].to_numpy().astype(np.float64)
    response, start = own[cuts.segments.trajectory], cuts.segments.start  # [S]
    first, count = np.empty_like(start), np.empty_like(start)
    in_order = np.empty_like(rewards)
    by_question = np.argsort(question[response], kind="stable")
    borders = np.searchsorted(question[response][by_question], np.arange(question.max(initial=-1) + 2))
    begins = np.searchsorted(question, np.arange(question.max(initial=-1) + 2))
    for number, begin in enumerate(begins[:-1]):
        members = range(begin, begins[number + 1])
        order, common = shared_prefixes([responses[i] for i in members])
        in_order[begin : begins[number + 1]] = rewards[begin + order]
        rows = by_question[borders[number] : borders[number + 1]]
        place = np.argsort(order)[response[rows] - begin]
        first[rows], count[rows] = responses_with_prefix(common, place, start[rows])
        first[rows] += begin
    seen = gather_ranges(in_order, first, count)
    value = monte_carlo_values(seen).mean
    advantages = chain_advantages(cuts.segments, value, rewards[own])
    if settings.baseline == "leave-one-out":
        advantages = leave_own_reward_out(advantages, rewards[response], count)
    return estimated(
        cuts.rows,
        advantages,
        seen,
        best_of=settings.best_of,
        keep_zero=settings.keep_zero,
        counts=count_questions(rewards, question),
    )
