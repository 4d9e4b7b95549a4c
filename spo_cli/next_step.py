"""Suggest the command that continues the work of a finished one."""

from __future__ import annotations

import shlex

from stages.core.errors import SpoError
from stages.core.paths import AnyPath, as_path
from stages.core.progress import Summary
from stages.shards.names import parse_part_name

_FOLLOWS = {
    "rollout": ("segment", "cutpoints"),
    "import": ("segment", "cutpoints"),
    "segment": ("estimate", "advantages"),
    "estimate": ("train", "checkpoint"),
}
"""Stage → the stage that reads its output, and the directory beside the output that a run gives that stage."""
_MEASURE = "spo eval -m {out} --task NAME --out {beside}/eval"
_INSPECT = {
    "sft": _MEASURE,
    "train": _MEASURE,
    "eval": "spo report {out} --out {out}.html",
    "run": "spo show {out}",
}
"""Other stages → the command that measures or shows what they made."""


def next_command(summary: Summary) -> str | None:
    """Return the command that usually follows, with the paths of a run; None if parts of other tasks are missing."""
    out = as_path(summary.out)
    beside = out.parent
    if follows := _FOLLOWS.get(summary.stage):
        if not _is_complete(out):
            return None
        stage, name = follows
        return f"spo {stage} {shlex.quote(str(out))} --out {shlex.quote(str(beside / name))}"
    template = _INSPECT.get(summary.stage)
    return template.format(out=shlex.quote(str(out)), beside=shlex.quote(str(beside))) if template else None


def _is_complete(directory: AnyPath) -> bool:
    """Return whether every part of an artefact exists."""
    try:
        named = [parse_part_name(path.name) for path in directory.glob("part-*.parquet")]
    except (OSError, SpoError):
        return False
    parts = [part for part in named if part]
    return bool(parts) and len(parts) == parts[0][1]
