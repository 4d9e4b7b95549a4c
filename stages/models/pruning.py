"""Read the record of large files that were deleted from a model directory (`[run] keep_checkpoints`).

    DIR/pruned.json    {"weights": {name: digest}, "optimizer": {name: digest}}, written before the files are deleted

The rest of the directory stays, including lineage and metrics. The recorded digests still identify a pruned checkpoint,
so artefacts made from it stay up to date; only commands that need the files themselves fail, with a message that says
why. `stages.pipeline.retention` decides what is deleted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from stages.core import storage
from stages.core.errors import UserError
from stages.core.json_files import read_json
from stages.core.paths import AnyPath

PRUNED_FILE = "pruned.json"
Kind = Literal["weights", "optimizer"]


def read_pruned(directory: AnyPath, kind: Kind) -> dict[str, str]:
    """Return name → digest of the files of one kind that were deleted, or are about to be.

    Raises:
      UserError: the record cannot be read.
    """
    path = directory / PRUNED_FILE
    if not path.is_file():
        return {}
    found = read_json(path).get(kind, {})
    if not isinstance(found, dict) or not all(isinstance(digest, str) for digest in found.values()):
        raise UserError(f"{path} cannot be read: expected file names with their digests under {kind}")
    return found


def lost(directory: AnyPath, kind: Kind) -> list[str]:
    """Return the names of the files of one kind that are deleted."""
    return [name for name in read_pruned(directory, kind) if not (directory / name).is_file()]


def digest_of(file: Path, kind: Kind) -> str | None:
    """Return the digest of a file, as recorded if the file was pruned; None if it never existed."""
    return storage.file_digest(file) if file.is_file() else read_pruned(file.parent, kind).get(file.name)


def check_weights(directory: AnyPath) -> None:
    """Check that the weights of a model exist; call it before loading the model.

    Raises:
      UserError: the weights were pruned.
    """
    if lost(directory, "weights"):
        raise UserError(
            f"the weights in {directory} were pruned to make room ([run] keep_checkpoints): use a checkpoint that "
            "still has them, such as the last one of the run"
        )


def check_optimizer(directory: AnyPath) -> None:
    """Check that the optimizer's state of a model exists; call it before continuing from it.

    Raises:
      UserError: the state was pruned.
    """
    if lost(directory, "optimizer"):
        raise UserError(
            f"the optimizer's state in {directory} was pruned to make room ([run] keep_checkpoints): pass "
            "--optimizer-state fresh to start over, or use a checkpoint that still has it, such as the last one of the "
            "run"
        )
