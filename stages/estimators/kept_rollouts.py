"""Build the rows of `schemas.ROLLOUTS`: the rollouts of the Monte Carlo estimator, each with its own advantage.

A rollout from state s is a sibling of the segment that continues there. Its advantage is its reward minus V(s), where V
is the mean reward of the *other* rollouts from s. With its own reward in the mean, the expected advantage would shrink
by the factor (n − 1)/n.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from stages.configs.estimate import Config
from stages.core.errors import UserError
from stages.estimators.rollouts import KeptRollout, RolloutState
from stages.estimators.segments import SegmentBatch
from stages.maths.advantages import sibling_advantages
from stages.maths.partition import find_cutpoints
from stages.maths.ragged import Ragged, offsets_of
from stages.responses.grading import decode
from stages.shards.parts import Artefact
from stages.shards.schemas import ROLLOUTS
from stages.shards.tables import list_array


def find_rho(options: Config, cutpoints: Artefact) -> float | None:
    """Return ρ of the cutpoints, which also makes the mask of the rollouts; None if no rollouts are kept.

    Raises:
      UserError: rollouts are kept, and the cutpoints do not record ρ.
    """
    if not options.keep_rollouts:
        return None
    rho = cutpoints.lineage.config.get("rho") if cutpoints.lineage else None
    if rho is None:
        raise UserError(
            f"--keep-rollouts needs the --rho of the cutpoints, which {cutpoints.path} does not record: make them with "
            "`spo segment`, or omit --keep-rollouts"
        )
    return float(rho)


def build_rollouts(
    batch: SegmentBatch,
    chunk: range,
    states: Sequence[RolloutState],
    state_of: np.ndarray,
    kept: Sequence[Sequence[KeptRollout]],
    rho: float,
    tokenizer: PreTrainedTokenizerBase,
) -> pa.Table:
    """Return one row for each rollout of a chunk, state by state.

    Args:
      chunk: trajectories, rows of `batch.trajectories`.
      states: the distinct states of the chunk.
      state_of: int64 [S] state where each segment of the chunk starts, −1 for none.
      kept: the rollouts from each state.
      rho: a token is a cutpoint if its probability is below this.
    """
    passing = _passing_trajectories(batch, chunk, state_of, len(states))
    names = [f"{ids[0]}:{state.response_size}" for ids, state in zip(passing, states, strict=True)]
    flat = [(i, j, one) for i, rollouts in enumerate(kept) for j, one in enumerate(rollouts)]
    state = np.array([i for i, _, _ in flat], np.int64)
    tokens = [one.sample.token_ids for _, _, one in flat]
    logprobs = Ragged.of([one.sample.logprobs for _, _, one in flat], np.float32)
    rewards = np.array([np.nan if one.grade.reward is None else one.grade.reward for _, _, one in flat], np.float64)
    value, advantage = _leave_one_out(rewards, state)
    columns = {
        "rollout_id": [f"{names[i]}/{j}" for i, j, _ in flat],
        "state_id": [names[i] for i in state],
        "question_id": [states[i].question_id for i in state],
        "trajectory_ids": [passing[i] for i in state],
        "start": [states[i].response_size for i in state],
        "sample": [j for _, j, _ in flat],
        "token_ids": tokens,
        "logprobs": list_array(logprobs, pa.float32()),
        "cutpoints": list_array(_cutpoint_offsets(logprobs, rho), pa.int32()),
        "text": decode(tokenizer, tokens) if tokens else [],
        "finish_reason": [one.sample.finish_reason for _, _, one in flat],
        "answer": [one.grade.answer for _, _, one in flat],
        "reward": pa.array(rewards, pa.float32(), from_pandas=True),
        "value_start": pa.array(value, from_pandas=True),
        "advantage": pa.array(advantage, from_pandas=True),
    }
    arrow = ROLLOUTS.arrow
    return pa.table([pa.array(columns[name], arrow.field(name).type) for name in ROLLOUTS.names], schema=arrow)


def _passing_trajectories(batch: SegmentBatch, chunk: range, state_of: np.ndarray, count: int) -> list[list[str]]:
    """Return the ids of the trajectories that pass through each state, in order."""
    ids = batch.trajectories["trajectory_id"].slice(chunk.start, len(chunk)).to_pylist()
    owner = batch.segments_of(chunk).trajectory
    passing: list[list[str]] = [[] for _ in range(count)]
    for segment in np.flatnonzero(state_of >= 0):
        passing[state_of[segment]].append(ids[owner[segment]])
    return passing


def _leave_one_out(rewards: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return V(s) without the own reward, and the advantage: float64 [R]; NaN without a reward or another rollout."""
    value, advantage = np.full((2, rewards.size), np.nan)
    graded = np.flatnonzero(np.isfinite(rewards))
    found = sibling_advantages(rewards[graded], state[graded], baseline="leave-one-out")
    has_other = np.bincount(state[graded], minlength=1)[state[graded]] > 1
    value[graded[has_other]] = found.value_start[has_other]
    advantage[graded[has_other]] = found.advantage[has_other]
    return value, advantage


def _cutpoint_offsets(logprobs: Ragged, rho: float) -> Ragged:
    """Return the offsets of the cutpoints of each row."""
    is_cutpoint = find_cutpoints(logprobs, rho)
    row = np.repeat(np.arange(len(logprobs)), logprobs.lengths)[is_cutpoint]
    position = np.flatnonzero(is_cutpoint)
    return Ragged(position - logprobs.offsets[row], offsets_of(np.bincount(row, minlength=len(logprobs))))
