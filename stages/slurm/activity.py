"""How fast a part is made, how much is left, and what its rewards and its last warning are: from its log and chunks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.errors import UserError
from stages.core.json_files import read_json_lines
from stages.shards.calls import read_calls


@dataclass(frozen=True)
class Activity:
    """What is known about unfinished work; None where it is not.

    Attributes:
      tokens_per_second: sampled tokens of the last call, from its start to its last chunk; trained ones of a model.
      seconds_left: until the part is done, at the pace of the last call.
      reward: mean reward of the committed chunks, or of the last step of a training.
      warning: last warning of the last call, or its last note if it has none.
    """

    tokens_per_second: float | None = None
    seconds_left: float | None = None
    reward: float | None = None
    warning: str | None = None


def of_part(log: Path, begun: Path, now: datetime) -> Activity:
    """Return the activity of a part.

    Args:
      log: of the part.
      begun: directory of its chunks.
      now: the time, with a time zone.
    """
    calls = read_calls(log.read_text(errors="replace")) if log.is_file() else []
    if not calls:
        return Activity(reward=_mean_reward(begun))
    call = calls[-1]
    warning = next(reversed(call.warnings or call.notes), None)
    if not call.chunks:
        return Activity(reward=_mean_reward(begun), warning=warning)
    last = call.chunks[-1]
    seconds = max(last.time - call.began, 1.0)  # the times are whole seconds
    sampled = call.total("sampled")
    done = {chunk.number for one in calls for chunk in one.chunks}
    left = max(last.count - len(done), 0) * seconds / len(call.chunks)
    return Activity(
        sampled / seconds if sampled else None,
        max(left - (now.timestamp() - last.time), 0.0),
        _mean_reward(begun),
        warning,
    )


def of_model(metrics: Path) -> Activity:
    """Return the activity of a training from its metrics, one line per step."""
    try:
        lines = read_json_lines(metrics) if metrics.is_file() else []
    except UserError:  # its last line is being written
        return Activity()
    if not lines:
        return Activity()
    return Activity(lines[-1].get("tokens_per_second"), None, lines[-1].get("reward"))


def _mean_reward(begun: Path) -> float | None:
    """Return the mean reward of the rows of committed chunks; None if they have none, or vanish while they are read."""
    rewards = []
    for path in sorted(begun.glob("chunk-*.parquet")):
        try:
            if "reward" in pq.read_schema(path).names:
                rewards.append(pq.read_table(path, columns=["reward"])["reward"].to_numpy())
        except (OSError, pa.ArrowException):
            continue
    values = np.concatenate(rewards) if rewards else np.empty(0)
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else None
