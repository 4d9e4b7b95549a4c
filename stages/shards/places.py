"""Check that an output may be written where the user wants it: no data of another kind is there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from stages.core.errors import UserError
from stages.core.paths import AnyPath

Kind = Literal["artefact", "model", "run"]
_CONFIGURATIONS = ("config.json", "adapter_config.json")  # of a model, of an adapter


def check_place(out: AnyPath, kind: Kind) -> None:
    """Check that an output of this kind may be written to `out`; its own earlier files do not matter.

    Raises:
      UserError: a file or a link without a target is there, or a directory of another kind.
    """
    if isinstance(out, Path) and os.path.lexists(out) and not out.exists():
        raise UserError(f"{out} is a link that leads nowhere: remove it, or choose another --out")
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file; expected a directory, or nothing: choose another --out")
    if kind != "model" and any((out / name).exists() for name in _CONFIGURATIONS):
        raise UserError(f"{out} is a model directory: choose another --out for the {kind}")
    parquet = sorted(path.name for path in out.glob("[!._]*.parquet"))
    if kind != "artefact" and parquet:
        raise UserError(f"{out} holds an artefact (found {parquet[0]}): choose another --out for the {kind}")
    if parquet and not any(name.startswith("part-") for name in parquet):
        raise UserError(f"{out} holds data of another tool (found {parquet[0]}): choose another --out for the artefact")
