"""How fast a part is made, how much is left, and what its rewards and its last warning are: from its log and chunks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.errors import UserError
from stages.core.json_files import read_json_lines

_LINE = re.compile(r"^(\S+) (.*)$", re.MULTILINE)
_CHUNK = re.compile(r"chunk (\d+) of (\d+): .*")
_SAMPLED = re.compile(r"\bsampled ([0-9.e+]+)")
_ROUTINE = re.compile(r"started: |finished: |chunk \d+ of |.*: resuming")


@dataclass(frozen=True)
class Activity:
    """What is known about unfinished work; None where it is not.

    Attributes:
      tokens_per_second: sampled tokens of the last call, from its start to its last chunk; trained ones of a model.
      seconds_left: until the part is done, at the pace of the last call.
      reward: mean reward of the committed chunks, or of the last step of a training.
      warning: last line of the log that reports no routine step.
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
    text = log.read_text(errors="replace") if log.is_file() else ""
    lines = [(time, line) for time, line in _LINE.findall(text) if time[:2].isdigit()]
    first = max((i for i, (_, line) in enumerate(lines) if line.startswith("started: ")), default=0)
    call = lines[first:]
    warning = next((line for _, line in reversed(call) if not _ROUTINE.match(line)), None)
    chunks = [(datetime.fromisoformat(time), match) for time, line in call if (match := _CHUNK.fullmatch(line))]
    if not chunks:
        return Activity(reward=_mean_reward(begun), warning=warning)
    started, last = datetime.fromisoformat(call[0][0]), chunks[-1][0]
    seconds = max((last - started).total_seconds(), 1.0)  # the times are whole seconds
    sampled = sum(float(found[1]) for _, match in chunks if (found := _SAMPLED.search(match[0])))
    done = {match[1] for _, line in lines if (match := _CHUNK.fullmatch(line))}
    left = max(int(chunks[-1][1][2]) - len(done), 0) * seconds / len(chunks)
    return Activity(
        sampled / seconds if sampled else None,
        max(left - (now - last).total_seconds(), 0.0),
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
