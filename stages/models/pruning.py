"""What a model directory says of large files that were deleted to make room (`[run] keep_checkpoints`).

    DIR/pruned.json    {"weights": {name: digest}, "optimizer": {name: digest}}, written before any of them goes

The rest of the directory stays, lineage and metrics among it. With the digests a pruned checkpoint is still known for
what it was, so what was made from it stays up to date; only what needs the files themselves finds them gone, and says
so. `stages.pipeline.retention` decides what goes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from stages.core import storage
from stages.core.errors import UserError

PRUNED_FILE = "pruned.json"
Kind = Literal["weights", "optimizer"]


def read_pruned(directory: Path, kind: Kind) -> dict[str, str]:
    """Name → digest of the files of one kind that were deleted, or are about to be.

    Raises:
      UserError: the record cannot be read.
    """
    path = directory / PRUNED_FILE
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text()).get(kind, {})
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def lost(directory: Path, kind: Kind) -> list[str]:
    """Names of the files of one kind that are gone."""
    return [name for name in read_pruned(directory, kind) if not (directory / name).is_file()]


def digest_of(file: Path, kind: Kind) -> str | None:
    """The digest of a file's bytes, or of those that it had when it was pruned; None: it never was there."""
    return storage.file_digest(file) if file.is_file() else read_pruned(file.parent, kind).get(file.name)


def check_weights(directory: Path) -> None:
    """Called before a model is loaded.

    Raises:
      UserError: its weights were pruned.
    """
    if lost(directory, "weights"):
        raise UserError(
            f"the weights in {directory} were pruned to make room ([run] keep_checkpoints): take a checkpoint that "
            "still has them, such as the last of its run"
        )


def check_optimizer(directory: Path) -> None:
    """Called before an optimiser's state is continued.

    Raises:
      UserError: it was pruned.
    """
    if lost(directory, "optimizer"):
        raise UserError(
            f"the optimiser's state in {directory} was pruned to make room ([run] keep_checkpoints): pass "
            "--optimizer-state fresh to begin anew, or take a checkpoint that still has it, such as the last of its run"
        )
