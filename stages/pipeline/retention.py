"""Decide which checkpoints of a run keep their weights and optimizer state, and delete the rest.

The last checkpoints are kept whole. An older one loses its optimizer state. It keeps its weights only if the next
iteration recomputes old log-probabilities with them (under replay), or if it is one of every N-th. Lineage and metrics
are always kept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from stages.core import storage
from stages.core.paths import AnyPath
from stages.models import adapters
from stages.models.checkpoints import OPTIMIZER_FILE, WEIGHTS
from stages.models.pruning import PRUNED_FILE, Kind, read_pruned


@dataclass(frozen=True)
class Retention:
    """Which checkpoints are kept.

    Attributes:
      whole: number of latest iterations whose checkpoints are kept whole.
      scored: number of latest iterations whose weights the next iteration reads.
      every: keep the weights of every N-th iteration; None keeps no further ones.
    """

    whole: int
    scored: int = 1
    every: int | None = None

    def keeps_weights(self, number: int, last: int) -> bool:
        """Return whether iteration `number` keeps its weights after iteration `last`; both count from 0."""
        return last - number < max(self.whole, self.scored) or bool(self.every and (number + 1) % self.every == 0)


def prune_run(checkpoints: Sequence[AnyPath], keep: Retention) -> list[AnyPath]:
    """Prune the checkpoints of all iterations so far, oldest first; return those that lost files."""
    last = len(checkpoints) - 1
    return [
        directory
        for number, directory in enumerate(checkpoints[: max(0, last + 1 - keep.whole)])
        if prune(directory, weights=not keep.keeps_weights(number, last))
    ]


def prune(directory: AnyPath, *, weights: bool) -> bool:
    """Delete the optimizer state of a model directory and of the models inside it (a critic, a merged model).

    The names and digests of the files are recorded before they are deleted, so a killed call can be repeated.

    Args:
      directory: model directory.
      weights: also delete the weights.

    Returns:
      Whether there were files to delete.
    """
    patterns: dict[Kind, tuple[str, ...]] = {"optimizer": (OPTIMIZER_FILE,)}
    if weights:
        patterns["weights"] = (*WEIGHTS, *adapters.WEIGHTS)
    found = False
    for model in (directory, *(path.parent for path in sorted(directory.glob("*/config.json")))):
        files = {kind: sorted({f for one in names for f in model.glob(one)}) for kind, names in patterns.items()}
        if not any(files.values()):
            continue
        pruned: dict[str, dict[str, str]] = {kind: read_pruned(model, kind) for kind in ("weights", "optimizer")}
        for kind, paths in files.items():
            pruned[kind] |= {path.name: storage.file_digest(path) for path in paths}
        storage.write_atomically(model / PRUNED_FILE, json.dumps(pruned, indent=2).encode() + b"\n")
        for path in (path for paths in files.values() for path in paths):
            path.unlink()
        found = True
    return found
