"""`spo rollout`: sample K responses to each question → trajectories/.

One row per response: the exact token ids, their log-probabilities, the answer that was read, the reward.
"""

# pyarrow.compute makes its functions at import time:
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.config import validate
from stages.flags import ResponseFlags
from stages.progress import Progress, Silent, Summary

if TYPE_CHECKING:
    import pyarrow as pa

    from stages.responses import Response


@dataclass(frozen=True, kw_only=True)
class Config(ResponseFlags):
    """What `spo rollout` is told."""

    def __post_init__(self) -> None:
        validate(self)


def run(config: Config, progress: Progress = Silent()) -> Summary:
    """Samples this shard's questions.

    Raises:
      UserError: wrong options, an unusable model, a task without questions, a question longer than the context.
      FingerprintMismatch: the part exists and was made with another configuration.
    """
    from stages.responses import write_responses
    from stages.shards import schemas

    started = time.monotonic()
    work = write_responses("rollout", schemas.TRAJECTORIES, config, trajectory_table, reward_statistics, progress)
    figures = dict(work.part.lineage.summary)
    return Summary(
        stage="rollout",
        out=str(config.out),
        rows=work.part.rows,
        seconds=time.monotonic() - started,
        up_to_date=work.part.up_to_date,
        tokens_sampled=work.sampled,
        tokens_prefilled=work.prefilled,
        reward=figures.pop("reward", None),
        figures=figures,
    )


def reward_statistics(trajectories: pa.Table) -> dict[str, float]:
    """Mean reward and length, and the share of questions whose responses all earned the same."""
    import numpy as np
    import pyarrow.compute as pc

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


def trajectory_table(responses: list[Response]) -> pa.Table:
    """One row per response, in the columns of `schemas.TRAJECTORIES`."""
    import pyarrow as pa

    from stages.shards.schemas import TRAJECTORIES

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
