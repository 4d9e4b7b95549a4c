"""What lies in a run's directory: every artefact and model in it, whether it is complete, and what it amounts to."""

# pyarrow.compute makes its functions when it is imported, out of the type checker's sight.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from spo_cli.ancestry import is_model, lineage_at
from spo_cli.trees import load_nodes
from stages.core.errors import IncompleteInput, UserError
from stages.core.paths import StorePath
from stages.models.adapters import WEIGHTS, bases, is_adapter, read_lora
from stages.models.pruning import Kind, lost
from stages.models.transfer import CONFIGURATIONS
from stages.responses.trees import are_trees
from stages.shards.parts import Artefact, open_artefact
from stages.shards.schemas import BY_STAGE, EVALUATION, TRAJECTORIES
from stages.training.resumable import METRICS_FILE

_KINDS: dict[Kind, str] = {"weights": "weights", "optimizer": "the optimiser's state"}
_DEPTH = 3  # runs/gsm8k/000/trajectories, seen from runs


@dataclass(frozen=True)
class Entry:
    """One artefact or model.

    Attributes:
      path: relative to the run.
      stage: what made it; "" where that is not known.
      state: "complete", "partial", or "weights pruned" of a checkpoint that lost them to make room.
      problem: what is wrong with a partial one, and the remedy.
      rows, reward: of a complete table; None where there are none.
    """

    path: str
    stage: str
    state: str
    problem: str | None = None
    rows: int | None = None
    reward: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


def holds_parts(directory: Path) -> bool:
    """Whether a directory is an artefact, be it only begun."""
    return any(directory.glob("[!._]*.parquet")) or any(directory.glob(".part-*"))


def inventory(run: Path) -> list[Entry]:
    """Everything that a run holds, in the order of its names; an iteration's artefacts in the order of the stages."""
    found = _directories_of_store(run) if isinstance(run, StorePath) else _directories(run)
    entries = [_model(path, run) if is_model(path) else _table(path, run) for path in found]
    return sorted(entries, key=_order)


def model_figures(path: Path) -> dict[str, Any]:
    """Architecture and size of a model directory, from its configuration and files; of an adapter what it changes."""
    figures = _adapter_figures(path) if is_adapter(path) else _whole_figures(path)
    gone = [told for kind, told in _KINDS.items() if lost(path, kind)]
    pruned = {"pruned_to_make_room": " and ".join(gone)} if gone else {}
    return figures | pruned | _last_metrics(path / METRICS_FILE)


def _whole_figures(path: Path) -> dict[str, Any]:
    config = path / "config.json"
    if not config.is_file():
        raise UserError(f"{path} has no config.json: it is no model directory, or one that was not written whole")
    told = json.loads(config.read_text())
    names = {
        "architecture": "architectures",
        "layers": "num_hidden_layers",
        "width": "hidden_size",
        "vocabulary": "vocab_size",
        "context": "max_position_embeddings",
    }
    figures = {name: told[key] for name, key in names.items() if key in told}
    if "architecture" in figures:
        figures["architecture"] = ", ".join(figures["architecture"])
    weights = [*path.glob("model*.safetensors"), *path.glob("pytorch_model*.bin")]
    return figures | {"megabytes_of_weights": round(sum(file.stat().st_size for file in weights) / 1e6, 3)}


def _adapter_figures(path: Path) -> dict[str, Any]:
    adapter, ((base, _), *_) = read_lora(path), bases(path)
    weights = [file for name in WEIGHTS if (file := path / name).is_file()]
    return {
        "adapter_of": base,
        "rank": adapter.r,
        "alpha": adapter.alpha,
        "layers": ", ".join(adapter.targets),
        "megabytes_of_weights": round(sum(file.stat().st_size for file in weights) / 1e6, 3),
    }


def _last_metrics(path: Path) -> dict[str, Any]:
    """How many steps a training took, and the metrics of the last one."""
    if not path.is_file():
        return {}
    lines = path.read_text().splitlines()
    return {"steps": len(lines), "last_step": json.loads(lines[-1])} if lines else {}


def _directories(run: Path) -> list[Path]:
    """The artefacts and models below a run."""
    found = [path for depth in range(1, _DEPTH + 1) for path in run.glob("/".join(["[!._]*"] * depth)) if path.is_dir()]
    return [path for path in found if is_model(path) or holds_parts(path)]


def _directories_of_store(run: StorePath) -> list[Path]:
    """The same by one listing of all that lies there."""
    found: dict[Path, None] = {}
    for file, _ in run.walk_files():
        *above, name = file.relative_to(run).parts
        begun = next((place for place, folder in enumerate(above) if folder.startswith(".part-")), None)
        above = above if begun is None else above[:begun]
        is_told = begun is not None or name in CONFIGURATIONS or (name.endswith(".parquet") and name[0] not in "._")
        if is_told and 0 < len(above) <= _DEPTH and not any(folder[0] in "._" for folder in above):
            found[run.joinpath(*above)] = None
    return list(found)


def _model(path: Path, run: Path) -> Entry:
    lineage = lineage_at(path)
    state = "weights pruned" if lost(path, "weights") else "complete"
    return Entry(path.relative_to(run).as_posix(), lineage.stage if lineage else "", state)


def _table(path: Path, run: Path) -> Entry:
    name = path.relative_to(run).as_posix()
    try:
        artefact = open_artefact(path)
        reward = _reward(artefact)
    except (IncompleteInput, UserError) as error:
        return Entry(name, _stage_of_begun(path), "partial", str(error))
    return Entry(name, artefact.schema.stage, "complete", None, artefact.rows, reward)


def _stage_of_begun(path: Path) -> str:
    """What is making an artefact that is not whole yet, by the parts it has."""
    try:
        lineage = lineage_at(path)
    except (IncompleteInput, UserError):  # the very part that is torn: its state says so
        return ""
    return lineage.stage if lineage else ""


def _reward(artefact: Artefact) -> float | None:
    if "reward" not in artefact.schema.names or not artefact.rows:
        return None
    if artefact.schema is TRAJECTORIES and are_trees(artefact):
        return load_nodes(artefact).reward
    rewards = _read_rewards(artefact).drop_null().to_numpy()
    return float(np.mean(rewards)) if rewards.size else None


def _read_rewards(artefact: Artefact) -> pa.ChunkedArray:
    """All rewards; of an evaluation under several budgets those under the largest."""
    if artefact.schema is not EVALUATION:
        return artefact.read_all(["reward"])["reward"]
    table = artefact.read_all(["reward", "max_tokens"])
    budgets = table["max_tokens"].fill_null(0)
    return table["reward"].filter(pc.equal(budgets, pc.max(budgets)))


def _order(entry: Entry) -> tuple[str, int, str]:
    stages = [*BY_STAGE, "sft", "train"]
    parent = entry.path.rpartition("/")[0]
    return parent, stages.index(entry.stage) if entry.stage in stages else len(stages), entry.path
