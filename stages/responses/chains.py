"""Sample independent responses for `spo rollout` without --tree: one row per response, and statistics of the rows."""

# pyarrow.compute makes its functions at import time:
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.maths.values import all_equal
from stages.responses.generation import Response, Sampling, respond
from stages.responses.signal import without_answer
from stages.sampling.protocol import OnTokens, Usage
from stages.shards.schemas import TRAJECTORIES
from stages.shards.tables import encode_names
from stages.tasks import Question


def answer(
    questions: Sequence[Question],
    prompts: Sequence[np.ndarray],
    sampling: Sampling,
    on_tokens: OnTokens,
    *,
    num_generations: int,
) -> tuple[pa.Table, Usage]:
    """Sample `num_generations` responses to each question.

    Args:
      prompts: int32 [P] token ids per question.
      on_tokens: called with what was done since its last call; a response counts as a sample.

    Returns:
      Rows of `TRAJECTORIES`, question by question; `reward` is null where the verifier reached no verdict. The tokens
      that the engine sampled and prefilled.
    """
    responses, usage = respond(questions, prompts, sampling, on_tokens, num_generations=num_generations)
    return response_table(responses), usage


def response_table(responses: Sequence[Response]) -> pa.Table:
    """Return one row of `TRAJECTORIES` per response."""
    columns = {
        "trajectory_id": [f"{response.question.id}/{response.index}" for response in responses],
        "parent_id": [None] * len(responses),
        "question_id": [response.question.id for response in responses],
        "depth": [0] * len(responses),
        "prompt": [response.question.prompt for response in responses],
        "prompt_token_ids": [response.prompt_token_ids for response in responses],
        "token_ids": [response.sample.token_ids for response in responses],
        "logprobs": [response.sample.logprobs for response in responses],
        "text": [response.grade.text for response in responses],
        "finish_reason": [response.sample.finish_reason for response in responses],
        "answer": [response.grade.answer for response in responses],
        "reference": [response.question.reference for response in responses],
        "reward": [response.grade.reward for response in responses],
    }
    return pa.table(columns, schema=TRAJECTORIES.arrow)


def statistics(trajectories: pa.Table) -> dict[str, float]:
    """Return mean reward and length, the fractions truncated and without answer, and of questions with equal rewards.

    Responses that could not be graded are left out of the rewards; without a graded one there is no mean reward.

    Args:
      trajectories: columns question_id, token_ids, finish_reason, answer, reward.

    Returns:
      Statistics by name; empty for an empty table.
    """
    if not trajectories.num_rows:
        return {}
    reward = trajectories["reward"].to_numpy()
    equal = all_equal(reward, encode_names(trajectories["question_id"]))
    return {
        **({} if np.isnan(reward).all() else {"reward": float(np.nanmean(reward, dtype=np.float64))}),
        "frac_reward_zero_std": float(equal.mean()),
        "completions/mean_length": pc.mean(pc.list_value_length(trajectories["token_ids"])).as_py(),
        "completions/no_answer_ratio": float(without_answer(trajectories).mean()),
        "completions/clipped_ratio": pc.mean(pc.equal(trajectories["finish_reason"], "length")).as_py(),
    }
