"""`spo rollout`: sample K responses to each question → trajectories/.

One row per response: the exact token ids, their log-probabilities, the answer that was read, the reward.
"""

# pyarrow.compute makes its functions at import time:
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.config import validate
from stages.flags import ResponseFlags
from stages.progress import Progress, Silent, Summary

if TYPE_CHECKING:
    import pyarrow as pa


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

    summary, figures = write_responses("rollout", schemas.TRAJECTORIES, config, reward_statistics, progress)
    return dataclasses.replace(summary, reward=figures.pop("reward", None), figures=figures)


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
