"""Draw the ancestry of an artefact or a model: its lineage, followed back through its inputs, as a tree."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
from pathlib import Path
from typing import Any

from rich.text import Text
from rich.tree import Tree

from spo_cli.app import VERBS
from stages.core.errors import IncompleteInput, UserError
from stages.core.paths import AnyPath, is_path_reference, locate
from stages.models.adapters import CONFIG_FILE
from stages.models.transfer import is_whole
from stages.shards.files import lineage_of, read_footer
from stages.shards.lineage import MODEL_FILE, Lineage, Source, read_lineage


def is_model(path: AnyPath) -> bool:
    """Return whether a path is a complete model directory; adapters count."""
    return any((path / name).is_file() for name in ("config.json", CONFIG_FILE, MODEL_FILE)) and is_whole(path)


def lineage_at(path: AnyPath) -> Lineage | None:
    """Return the lineage of a model directory, a part, or the first part of an artefact; None if there is none."""
    if is_model(path):
        return read_lineage(path)
    parts = [path] if path.is_file() else sorted(path.glob("[!._]*.parquet"))
    return lineage_of(read_footer(parts[0]), parts[0]) if parts else None


def ancestry(path: AnyPath, fingerprint: str, lineage: Lineage, depth: int) -> Tree:
    """Return a tree with the artefact or model at `path` as its root, and inputs as branches.

    Args:
      path: artefact, part or model directory.
      fingerprint: fingerprint of the whole artefact, or digest of the model, as the lineage of its descendants has it.
      lineage: its lineage.
      depth: number of generations to follow; the inputs of the last one are named, but not opened.
    """
    root = Tree(_label(lineage.stage, fingerprint, path, _chosen_options(lineage)))
    _grow(root, lineage, path if path.is_dir() else path.parent, depth, {lineage.fingerprint})
    return root


def _grow(node: Tree, lineage: Lineage, base: AnyPath, depth: int, seen: set[str]) -> None:
    """Add the inputs of a lineage to its node. Paths are relative to `base`; works in `seen` are not repeated."""
    for source in (*lineage.inputs, *([lineage.model] if lineage.model else [])):
        place = locate(source.path, base)
        parent = _parent(source, place)
        if parent is None:
            node.add(_label(source.stage, source.fingerprint, _source_text(source, place), ""))
        elif parent.fingerprint in seen:
            node.add(_label(parent.stage, source.fingerprint, place, "as above"))
        elif depth == 0:
            node.add(_label(parent.stage, source.fingerprint, place, "…"))
        else:
            seen.add(parent.fingerprint)
            branch = node.add(_label(parent.stage, source.fingerprint, place, _chosen_options(parent)))
            _grow(branch, parent, place if place.is_dir() else place.parent, depth - 1, seen)


def _parent(source: Source, place: AnyPath) -> Lineage | None:
    """Return the lineage of an input; None if it no longer exists, is corrupt, or has no lineage (optimizer states)."""
    if source.stage == "task" or not place.exists():
        return None
    try:
        return lineage_at(place)
    except (IncompleteInput, UserError):
        return None


def _source_text(source: Source, place: AnyPath) -> str | AnyPath:
    """Return the path of an input, marked if it no longer exists; for a hub model or a task, its name."""
    if place.exists():
        return place
    return f"{source.path} (no longer exists)" if is_path_reference(source.path) else source.path


def _label(stage: str, fingerprint: str, place: AnyPath | str, detail: str) -> Text:
    where = os.path.relpath(place) if isinstance(place, Path) else str(place)
    label = Text.assemble((stage or "from elsewhere", "bold"), "  ", (fingerprint[:8], "cyan"), f"  {where}")
    return label.append(f"  {detail}", "dim") if detail else label


def _chosen_options(lineage: Lineage) -> str:
    """Return the options that differ from their defaults."""
    config = importlib.import_module(VERBS[lineage.stage].config).Config if lineage.stage in VERBS else None
    defaults = {field.name: _as_json(field.default) for field in dataclasses.fields(config)} if config else {}
    chosen = {name: value for name, value in lineage.config.items() if value not in (defaults.get(name), None, [])}
    return ", ".join(f"{name.replace('_', ' ')} {_option_text(value)}" for name, value in chosen.items())


def _as_json(default: Any) -> Any:
    return json.loads(json.dumps(default, default=str))


def _option_text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
