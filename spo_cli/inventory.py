"""List the artefacts and models of a run: whether each is complete, its rows and its reward."""

# pyarrow.compute defines its functions at import, so the type checker does not know them.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from spo_cli.ancestry import is_model, lineage_at
from spo_cli.trees import load_nodes
from stages.core.errors import IncompleteInput, UserError
from stages.core.json_files import decoded, read_json, read_json_lines
from stages.core.paths import AnyPath
from stages.core.store import StorePath
from stages.models.adapters import WEIGHTS, bases, is_adapter, read_lora
from stages.models.checkpoints import METRICS_FILE
from stages.models.pruning import Kind, lost
from stages.models.transfer import CONFIGURATIONS
from stages.responses.trees import are_trees
from stages.shards.parts import Artefact, open_artefact
from stages.shards.schemas import BY_STAGE, EVALUATION, TRAJECTORIES

_KINDS: dict[Kind, str] = {"weights": "weights", "optimizer": "the optimizer state"}
_DEPTH = 3  # runs/gsm8k/000/trajectories, seen from runs


@dataclass(frozen=True)
class Entry:
    """One artefact or model.

    Attributes:
      path: path relative to the run.
      stage: command that wrote it; "" if unknown.
      state: "complete", "partial", or "weights pruned" for a checkpoint whose weights `spo prune` deleted.
      problem: the problem of a partial one, with the remedy.
      rows, reward: number of rows and mean reward of a complete table; None if it has none.
    """

    path: str
    stage: str
    state: str
    problem: str | None = None
    rows: int | None = None
    reward: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the entry as JSON values."""
        return dataclasses.asdict(self)


def holds_parts(directory: AnyPath) -> bool:
    """Return whether a directory is an artefact, complete or unfinished."""
    return any(directory.glob("[!._]*.parquet")) or any(directory.glob(".part-*"))


def holds_iterations(directory: AnyPath) -> bool:
    """Return whether a directory is a run: it has a numbered directory."""
    return any(child.name.isdigit() for child in directory.glob("[0-9]*"))


def inventory(run: AnyPath) -> list[Entry]:
    """Return all artefacts and models of a run, sorted by directory, and within one by stage."""
    found = _directories_of_store(run) if isinstance(run, StorePath) else _directories(run)
    entries = [_model(name, path) if is_model(path) else _table(name, path) for name, path in found.items()]
    return sorted(entries, key=_order)


def model_figures(path: AnyPath) -> dict[str, Any]:
    """Return the architecture and size of a model directory, or the rank and layers of an adapter, and last metrics."""
    figures = _adapter_figures(path) if is_adapter(path) else _whole_figures(path)
    deleted = [text for kind, text in _KINDS.items() if lost(path, kind)]
    pruned = {"pruned_to_make_room": " and ".join(deleted)} if deleted else {}
    return figures | pruned | _last_metrics(path / METRICS_FILE)


def _whole_figures(path: AnyPath) -> dict[str, Any]:
    config = path / "config.json"
    if not config.is_file():
        raise UserError(f"{path} has no config.json: it is not a model directory, or an incomplete one")
    settings = read_json(config)
    names = {
        "architecture": "architectures",
        "layers": "num_hidden_layers",
        "width": "hidden_size",
        "vocabulary": "vocab_size",
        "context": "max_position_embeddings",
    }
    figures = {name: settings[key] for name, key in names.items() if key in settings}
    if "architecture" in figures:
        figures["architecture"] = decoded(lambda: ", ".join(figures["architecture"]), str(config))
    weights = [*path.glob("model*.safetensors"), *path.glob("pytorch_model*.bin")]
    return figures | {"megabytes_of_weights": round(sum(file.stat().st_size for file in weights) / 1e6, 3)}


def _adapter_figures(path: AnyPath) -> dict[str, Any]:
    adapter, ((base, _), *_) = read_lora(path), bases(path)
    weights = [file for name in WEIGHTS if (file := path / name).is_file()]
    return {
        "adapter_of": base,
        "rank": adapter.r,
        "alpha": adapter.alpha,
        "layers": ", ".join(adapter.targets),
        "megabytes_of_weights": round(sum(file.stat().st_size for file in weights) / 1e6, 3),
    }


def _last_metrics(path: AnyPath) -> dict[str, Any]:
    """Return the number of training steps, and the metrics of the last one."""
    if not path.is_file():
        return {}
    lines = read_json_lines(path)
    return {"steps": len(lines), "last_step": lines[-1]} if lines else {}


def _directories(run: Path) -> dict[str, Path]:
    """Return the artefacts and models below a local run, by their paths relative to it."""
    found = [path for depth in range(1, _DEPTH + 1) for path in run.glob("/".join(["[!._]*"] * depth)) if path.is_dir()]
    return {path.relative_to(run).as_posix(): path for path in found if is_model(path) or holds_parts(path)}


def _directories_of_store(run: StorePath) -> dict[str, StorePath]:
    """Return what `_directories` does, for a run in an object store, by a single listing of its objects."""
    found: dict[str, StorePath] = {}
    for file, _ in run.walk_files():
        *above, name = file.relative_to(run).parts
        unfinished = next((position for position, folder in enumerate(above) if folder.startswith(".part-")), None)
        above = above if unfinished is None else above[:unfinished]
        is_evidence = (
            unfinished is not None or name in CONFIGURATIONS or (name.endswith(".parquet") and name[0] not in "._")
        )
        if is_evidence and 0 < len(above) <= _DEPTH and not any(folder[0] in "._" for folder in above):
            name = "/".join(above)
            found[name] = run / name
    return found


def _model(name: str, path: AnyPath) -> Entry:
    lineage = lineage_at(path)
    state = "weights pruned" if lost(path, "weights") else "complete"
    return Entry(name, lineage.stage if lineage else "", state)


def _table(name: str, path: AnyPath) -> Entry:
    try:
        artefact = open_artefact(path)
        reward = _reward(artefact)
    except (IncompleteInput, UserError) as error:
        return Entry(name, _stage_of_partial(path), "partial", str(error))
    return Entry(name, artefact.schema.stage, "complete", None, artefact.rows, reward)


def _stage_of_partial(path: AnyPath) -> str:
    """Return the stage that writes an incomplete artefact, from the parts that exist; "" if unknown."""
    try:
        lineage = lineage_at(path)
    except (IncompleteInput, UserError):  # the part itself is corrupt; the entry's problem reports it
        return ""
    return lineage.stage if lineage else ""


def _reward(artefact: Artefact) -> float | None:
    """Return the mean reward of an artefact; for trees, the mean value of the prompts."""
    if "reward" not in artefact.schema.names or not artefact.rows:
        return None
    if artefact.schema is TRAJECTORIES and are_trees(artefact):
        return load_nodes(artefact).reward
    rewards = _read_rewards(artefact).drop_null().to_numpy()
    return float(np.mean(rewards)) if rewards.size else None


def _read_rewards(artefact: Artefact) -> pa.ChunkedArray:
    """Return all rewards; for an evaluation with several budgets, those at the largest budget."""
    if artefact.schema is not EVALUATION:
        return artefact.read_all(["reward"])["reward"]
    table = artefact.read_all(["reward", "max_tokens"])
    budgets = table["max_tokens"].fill_null(0)
    return table["reward"].filter(pc.equal(budgets, pc.max(budgets)))


def _order(entry: Entry) -> tuple[str, int, str]:
    stages = [*BY_STAGE, "sft", "train"]
    parent = entry.path.rpartition("/")[0]
    return parent, stages.index(entry.stage) if entry.stage in stages else len(stages), entry.path
