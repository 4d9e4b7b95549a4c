"""Whole responses: what `spo rollout` writes without --tree, a response a row, and what there is to say of them."""

# pyarrow.compute makes its functions at import time:
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.responses.generation import OnTokens, Response, Sampling, respond
from stages.sampling.protocol import Usage
from stages.shards.schemas import TRAJECTORIES
from stages.tasks import Question


def answer(
    questions: Sequence[Question],
    prompts: Sequence[np.ndarray],
    sampling: Sampling,
    on_tokens: OnTokens,
    *,
    num_generations: int,
) -> tuple[pa.Table, Usage]:
    """Rows of `TRAJECTORIES`, `num_generations` to a question; null rewards where the verifier came to no verdict."""
    responses, usage = respond(questions, prompts, sampling, on_tokens, num_generations=num_generations)
    return response_table(responses), usage


def response_table(responses: Sequence[Response]) -> pa.Table:
    """One row of `TRAJECTORIES` per response."""
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
    """Mean reward and length, and the share of questions whose responses all earned the same.

    Args:
      trajectories: question_id, token_ids, finish_reason, reward.
    """
    if not trajectories.num_rows:
        return {}
    groups = trajectories.group_by("question_id").aggregate([("reward", "min"), ("reward", "max")])
    equal = np.asarray(groups["reward_min"]) == np.asarray(groups["reward_max"])
    return {
        "reward": pc.mean(trajectories["reward"]).as_py(),
        "frac_reward_zero_std": float(equal.mean()),
        "completions/mean_length": pc.mean(pc.list_value_length(trajectories["token_ids"])).as_py(),
        "completions/clipped_ratio": pc.mean(pc.equal(trajectories["finish_reason"], "length")).as_py(),
    }
