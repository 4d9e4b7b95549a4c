"""Find the questions whose answer changes from one evaluation of a run to the next."""

# pyarrow.compute makes its functions at import time:
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import NamedTuple

import pyarrow.compute as pc

from stages.reporting.selection import largest_budget
from stages.reporting.sources import Found
from stages.shards.parts import Artefact

RIGHT = 0.5
"""A question counts as answered right from this mean reward on."""


class Changes(NamedTuple):
    """Questions of one evaluation that the evaluation before it has, too, and that changed sides.

    Attributes:
      learned: ids of questions that are right now and were wrong before, sorted.
      forgotten: ids of questions that are wrong now and were right before, sorted.
    """

    learned: tuple[str, ...]
    forgotten: tuple[str, ...]


def find_changes(found: Found) -> dict[tuple[int, int], Changes]:
    """Return the changes by (run, iteration), for every evaluation but the first of each run and directory name."""
    changes: dict[tuple[int, int], Changes] = {}
    before: dict[tuple[int, str], dict[str, bool]] = {}
    evaluations = [one for one in found.responses if one.kind == "eval"]
    for one in sorted(evaluations, key=lambda one: (one.run, one.iteration)):
        series = (one.run, one.artefact.directory.name)
        now = _right(one.artefact)
        if series in before:
            changed = sorted(name for name in now if before[series].get(name, now[name]) != now[name])
            learned = tuple(name for name in changed if now[name])
            forgotten = tuple(name for name in changed if not now[name])
            changes[one.run, one.iteration] = Changes(learned, forgotten)
        before[series] = before.get(series, {}) | now
    return changes


def _right(artefact: Artefact) -> dict[str, bool]:
    """Return whether each question is answered right at the largest budget; ungradable responses are left out."""
    table = largest_budget(artefact.read_all(["question_id", "reward", "max_tokens"]))
    table = table.filter(pc.is_valid(table["reward"])).group_by("question_id").aggregate([("reward", "mean")])
    return {row["question_id"]: row["reward_mean"] >= RIGHT for row in table.to_pylist()}
