"""Where an artefact or a model came from: its lineage followed back through its inputs, as a tree."""

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
from stages.core.paths import is_local, is_path_reference, locate
from stages.models.adapters import CONFIG_FILE
from stages.models.transfer import is_whole
from stages.shards.files import lineage_of, read_footer
from stages.shards.lineage import MODEL_FILE, Lineage, Source, read_lineage


def is_model(path: Path) -> bool:
    """Whether a path is a model directory, an adapter's included."""
    return any((path / name).is_file() for name in ("config.json", CONFIG_FILE, MODEL_FILE)) and is_whole(path)


def lineage_at(path: Path) -> Lineage | None:
    """What a model directory, a part, or the first part of an artefact says of itself; None where nothing is said."""
    if is_model(path):
        return read_lineage(path)
    parts = [path] if path.is_file() else sorted(path.glob("[!._]*.parquet"))
    return lineage_of(read_footer(parts[0]), parts[0]) if parts else None


def ancestry(path: Path, fingerprint: str, lineage: Lineage, depth: int) -> Tree:
    """The tree whose root is the work at `path` and whose branches are what it was made from.

    Args:
      fingerprint: of the whole artefact, or the digest of the model: what its children know it by.
      depth: how many generations are followed; what lies beyond is named, not opened.
    """
    root = Tree(_label(lineage.stage, fingerprint, path, _chosen_options(lineage)))
    _grow(root, lineage, path if path.is_dir() else path.parent, depth, {lineage.fingerprint})
    return root


def _grow(node: Tree, lineage: Lineage, base: Path, depth: int, seen: set[str]) -> None:
    for source in (*lineage.inputs, *([lineage.model] if lineage.model else [])):
        place = locate(source.path, base)
        parent = _parent(source, place)
        if parent is None:
            node.add(_label(source.stage, source.fingerprint, _shown_place(source, place), ""))
        elif parent.fingerprint in seen:
            node.add(_label(parent.stage, source.fingerprint, place, "as above"))
        elif depth == 0:
            node.add(_label(parent.stage, source.fingerprint, place, "…"))
        else:
            seen.add(parent.fingerprint)
            branch = node.add(_label(parent.stage, source.fingerprint, place, _chosen_options(parent)))
            _grow(branch, parent, place if place.is_dir() else place.parent, depth - 1, seen)


def _parent(source: Source, place: Path) -> Lineage | None:
    """What the source says of itself, where it still can: a file of another kind (optimiser states) says nothing, nor
    does a part that has been damaged since."""
    if source.stage == "task" or not place.exists():
        return None
    try:
        return lineage_at(place)
    except (IncompleteInput, UserError):
        return None


def _shown_place(source: Source, place: Path) -> str | Path:
    if place.exists():
        return place
    return f"{source.path} (no longer there)" if is_path_reference(source.path) else source.path


def _label(stage: str, fingerprint: str, place: Path | str, detail: str) -> Text:
    where = os.path.relpath(place) if isinstance(place, Path) and is_local(place) else str(place)
    label = Text.assemble((stage or "from elsewhere", "bold"), "  ", (fingerprint[:8], "cyan"), f"  {where}")
    return label.append(f"  {detail}", "dim") if detail else label


def _chosen_options(lineage: Lineage) -> str:
    """The options that were not left at their default, which is what tells this work from other work of the stage."""
    config = importlib.import_module(VERBS[lineage.stage].config).Config if lineage.stage in VERBS else None
    defaults = {field.name: _as_json(field.default) for field in dataclasses.fields(config)} if config else {}
    chosen = {name: value for name, value in lineage.config.items() if value not in (defaults.get(name), None, [])}
    return ", ".join(f"{name.replace('_', ' ')} {_shown(value)}" for name, value in chosen.items())


def _as_json(default: Any) -> Any:
    return json.loads(json.dumps(default, default=str))


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
