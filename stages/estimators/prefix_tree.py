"""Estimate values from the tree that the shared prefixes of independent responses form, without rollouts.

V of a state is the mean reward of the question's responses that start with exactly its tokens, so V changes only where
responses diverge (TEMPO, arXiv 2509.18314). V at the end of a response is its own reward. A response that could not be
graded is left out of the means, and has no rows.

The mean is unbiased for a state that is chosen independently of what follows it. Segments that start where responses
diverge (`spo segment --partition branches`) are chosen by what follows, which gives rare branches too much weight.

The estimator `tempo` adds the term of GRPO and divides by the group's standard deviation. With segments of one token,
each branching token has a term of its own.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa

from stages.configs.estimate import Config
from stages.core.paths import AnyPath
from stages.core.progress import Progress
from stages.estimators import EstimatedChunk, Estimator, PreparedPart
from stages.estimators.rows import build_rows, count_questions, count_ungradable
from stages.estimators.segments import SegmentBatch, load_segments, load_whole_questions
from stages.maths.advantages import chain_advantages, leave_own_reward_out, tempo
from stages.maths.prefixes import responses_with_prefix, shared_prefixes
from stages.maths.ragged import gather_ranges, offsets_of
from stages.maths.values import monte_carlo_values
from stages.sampling.pool import SamplerPool
from stages.shards.parts import Artefact, Part
from stages.shards.tables import encode_names, ragged, rows_by_name

RECORDED = ("estimator", "baseline", "keep_zero", "best_of")
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

    def read(part: Part) -> PreparedPart:
        batch = load_segments(cutpoints, part, trajectories)
        columns = ["trajectory_id", "question_id", "token_ids", "reward"]
        _, group = load_whole_questions(cutpoints, part, trajectories, columns)
        return PreparedPart.single_chunk(batch.trajectories.num_rows, estimate(options, batch, group))

    return Estimator(options, RECORDED, read)


def estimate(options: Config, batch: SegmentBatch, group: pa.Table) -> EstimatedChunk:
    """Estimate one row per segment of a part.

    Args:
      group: columns trajectory_id, question_id, token_ids and reward of all responses to the questions of the part, by
        question.
    """
    question, responses = encode_names(group["question_id"]), ragged(group["token_ids"])
    own = rows_by_name(batch.trajectories["trajectory_id"], group["trajectory_id"])
    rewards = group["reward"].to_numpy().astype(np.float64)
    response, start = own[batch.segments.trajectory], batch.segments.start  # [S]
    # Sorted by tokens, the responses that share a prefix are adjacent: a state is a range of `sorted_rewards`.
    first, count = np.empty_like(start), np.empty_like(start)  # [S] the range of each segment's start
    sorted_rewards = np.empty_like(rewards)
    by_question = np.argsort(question[response], kind="stable")
    segment_bounds = np.searchsorted(question[response][by_question], np.arange(question.max(initial=-1) + 2))
    response_bounds = np.searchsorted(question, np.arange(question.max(initial=-1) + 2))
    for number, (begin, end) in enumerate(pairwise(response_bounds.tolist())):
        order, common = shared_prefixes([responses[i] for i in range(begin, end)])
        sorted_rewards[begin:end] = rewards[begin + order]
        rows = by_question[segment_bounds[number] : segment_bounds[number + 1]]
        position = np.argsort(order)[response[rows] - begin]  # of each segment's response in the sorted order
        first[rows], count[rows] = responses_with_prefix(common, position, start[rows])
        first[rows] += begin
    graded = ~np.isnan(sorted_rewards)
    before = offsets_of(graded)  # number of graded responses before each position
    first, count = before[first], before[first + count] - before[first]
    passing = gather_ranges(sorted_rewards[graded], first, count)  # rewards of those that pass through the state
    value = monte_carlo_values(passing).mean
    advantages = chain_advantages(batch.segments, value, rewards[own])
    if options.baseline == "leave-one-out":
        advantages = leave_own_reward_out(advantages, rewards[response], count)
    if options.estimator == "tempo":
        advantages = advantages._replace(advantage=tempo(advantages.advantage, response, rewards, question))
    return build_rows(
        batch.rows,
        advantages,
        passing,
        best_of=options.best_of,
        keep_zero=options.keep_zero,
        counts={**count_questions(rewards, question), **count_ungradable(rewards[own])},
    )
