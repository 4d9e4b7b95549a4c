"""Owns which checkpoints of a run keep their weights and their optimiser's state, and deletes the rest.

The last ones stay whole. Of the older ones stay the weights of those that the next iteration still scores with (under
replay, the samplers of the trajectories that it learns from), and of every so many-th; all lineage and metrics stay.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.core import storage
from stages.models import adapters
from stages.models.checkpoints import OPTIMIZER_FILE, WEIGHTS
from stages.models.pruning import PRUNED_FILE, Kind, read_pruned


@dataclass(frozen=True)
class Retention:
    """What stays.

    Attributes:
      whole: iterations, counted from the last, whose checkpoints stay as they are.
      scored: iterations, counted likewise, whose weights the next one needs.
      every: of every so many-th iteration the weights stay; None: of no further one.
    """

    whole: int
    scored: int = 1
    every: int | None = None

    def keeps_weights(self, number: int, last: int) -> bool:
        """Of iteration `number`, after iteration `last`; both from 0."""
        return last - number < max(self.whole, self.scored) or bool(self.every and (number + 1) % self.every == 0)


def prune_run(checkpoints: Sequence[Path], keep: Retention) -> list[Path]:
    """Prunes the checkpoints of all iterations so far, the first one first; returns those that lost anything."""
    last = len(checkpoints) - 1
    return [
        directory
        for number, directory in enumerate(checkpoints[: max(0, last + 1 - keep.whole)])
        if prune(directory, weights=not keep.keeps_weights(number, last))
    ]


def prune(directory: Path, *, weights: bool) -> bool:
    """Deletes the optimiser's state of a model directory and of those within it (a critic, a merged model).

    Killed at any moment, it can be called again: what goes was recorded before.

    Args:
      weights: the weights go as well.

    Returns:
      Whether there was anything to delete.
    """

    going: dict[Kind, tuple[str, ...]] = {"optimizer": (OPTIMIZER_FILE,)}
    if weights:
        going["weights"] = (*WEIGHTS, *adapters.WEIGHTS)
    found = False
    for place in (directory, *(path.parent for path in sorted(directory.glob("*/config.json")))):
        files = {kind: sorted({f for one in names for f in place.glob(one)}) for kind, names in going.items()}
        if not any(files.values()):
            continue
        gone: dict[str, dict[str, str]] = {kind: read_pruned(place, kind) for kind in ("weights", "optimizer")}
        for kind, paths in files.items():
            gone[kind] |= {path.name: storage.file_digest(path) for path in paths}
        storage.write_atomically(place / PRUNED_FILE, json.dumps(gone, indent=2).encode() + b"\n")
        for path in (path for paths in files.values() for path in paths):
            path.unlink()
        found = True
    return found
