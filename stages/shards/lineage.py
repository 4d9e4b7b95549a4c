"""Owns what a part says of itself: how it was made, from what, and the fingerprint of that.

The lineage is the JSON value under the key `spo` of a Parquet footer (and `spo.json` of a model directory). Nothing in
it varies between two runs of the same work: no times, hosts or absolute paths, so that a part that was interrupted and
resumed is the same file, byte for byte. Times are in the logs.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from stages.core.config import results_config
from stages.core.errors import UserError
from stages.core.paths import as_path, is_local, relative_path
from stages.core.storage import digest
from stages.shards.schemas import Schema

FOOTER_KEY = b"spo"
MODEL_FILE = "spo.json"
"""Where a model directory holds its lineage, beside the weights."""


@dataclass(frozen=True)
class Source:
    """Something that the work was made from.

    Attributes:
      path: relative to the directory that holds the work, unless one is in a store and the other is not; for a model of
        the hub or a task, its name.
      fingerprint: of a part or a whole artefact, or the digest of a file, a model's weights or a task's questions.
      stage: what made it ("rollout", "train", "task" …); "" where that is not known.
    """

    path: str
    fingerprint: str
    stage: str = ""


@dataclass(frozen=True)
class Lineage:
    """How a part (or a model directory) was made.

    Attributes:
      stage, schema_version: which table this is.
      config: the options that can change the result (`stages.core.config.results_config`).
      seed: its seed, if it has one.
      fingerprint: digest of stage, schema version, config, inputs, model and part; of no path.
      inputs: what it was made from, in the stage's order.
      model: the model that sampled or was trained.
      versions: of the packages that made it; not in the fingerprint.
      counts: whole numbers summed over its chunks, such as tokens sampled.
      summary: what the stage says of the whole part, e.g. its accuracy.
      part: (index, count) of the slice of the work; None for what is not cut into parts.
    """

    stage: str
    schema_version: int
    config: dict[str, Any]
    seed: int | None
    fingerprint: str
    inputs: tuple[Source, ...] = ()
    model: Source | None = None
    versions: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    part: tuple[int, int] | None = None

    def to_json(self) -> str:
        """Canonical JSON: the same lineage is the same text."""
        return canonical_json(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Lineage:
        """Reads what `to_json` wrote.

        Raises:
          UserError: text that is no lineage.
        """
        try:
            value = json.loads(text)
            value["inputs"] = tuple(Source(**source) for source in value["inputs"])
            value["model"] = value["model"] and Source(**value["model"])
            value["part"] = value["part"] and tuple(value["part"])
            return cls(**value)
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"expected a lineage written by this version of spo, found {text[:80]!r}") from error

    def at(self, index: int, count: int) -> Lineage:
        """The same work's slice `index` of `count`, which has a fingerprint of its own."""
        return _fingerprinted(dataclasses.replace(self, part=(index, count)))


def describe(
    stage: str,
    schema: Schema | None,
    config: Any,
    inputs: tuple[Source, ...] = (),
    model: Source | None = None,
    packages: tuple[str, ...] = (),
) -> Lineage:
    """The lineage of work about to be done.

    Args:
      stage: the verb.
      schema: of the table it writes; None for a model directory.
      config: the stage's Config; a field `seed` becomes the lineage's seed.
      inputs: artefacts (`stages.shards.parts.source`) and whatever else the rows depend on, e.g. a task's digest.
      model: the model directory and the digest of its weights (`model_source`).
      packages: distributions that the rows went through, e.g. ("torch", "transformers"), whose versions are noted.
    """
    lineage = Lineage(
        stage=stage,
        schema_version=schema.version if schema else 1,
        config=results_config(config),
        seed=getattr(config, "seed", None),
        fingerprint="",
        inputs=inputs,
        model=model,
        versions={"spo-cli": _version("spo-cli")} | {name: metadata.version(name) for name in packages},
    )
    return _fingerprinted(lineage)


def model_source(model: str | Path, digest: str, directory: Path) -> Source:
    """A model for the lineage of work in `directory`: a local path relative to it, a hub name as it is."""
    return Source(_place(str(model), directory), digest, "model")


def task_source(task: str, data: str | None, digest: str, directory: Path) -> Source:
    """A task's questions for the lineage of work in `directory`: the place of its data, or the task that makes them."""
    return Source(_place(data, directory) if data else task, digest, "task")


def differences(there: Lineage, asked: Lineage) -> list[str]:
    """What keeps two pieces of work from being the same, one line each: `temperature: 1.0 there, 0.6 asked`."""
    lines = [
        _difference(name.replace("_", " "), getattr(there, name), getattr(asked, name))
        for name in ("stage", "schema_version")
    ]
    names = [*there.config, *(name for name in asked.config if name not in there.config)]
    lines += [_difference(name, there.config.get(name), asked.config.get(name)) for name in names]
    lines.append(_difference("part", _show_part(there), _show_part(asked)))
    if len(there.inputs) != len(asked.inputs):
        lines.append(_difference("inputs", len(there.inputs), len(asked.inputs)))
    sources = [*zip(there.inputs, asked.inputs, strict=False), (there.model, asked.model)]
    return [line for line in [*lines, *(_source_difference(*pair) for pair in sources)] if line]


def write_lineage(directory: Path, lineage: Lineage) -> None:
    """Puts the lineage of a model beside its weights."""
    (directory / MODEL_FILE).write_text(lineage.to_json() + "\n")


def read_lineage(directory: Path) -> Lineage | None:
    """The lineage of a model directory; None if it was not made here.

    Raises:
      UserError: the file cannot be read.
    """
    path = directory / MODEL_FILE
    if not path.is_file():
        return None
    try:
        return Lineage.from_json(path.read_text())
    except (OSError, UserError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def combine(fingerprints: list[str]) -> str:
    """One fingerprint for several in order; that of a single one is itself."""
    return fingerprints[0] if len(fingerprints) == 1 else digest(canonical_json(fingerprints).encode())


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces; tuples become lists, NumPy numbers plain ones, NaN and infinities null."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):  # a NumPy number
        return _plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _place(name: str, directory: Path) -> str:
    """A path as seen from `directory`; what is none is a name on the hub."""
    path = as_path(name).expanduser()
    return relative_path(path, directory) if not is_local(path) or path.exists() else name


def _fingerprinted(lineage: Lineage) -> Lineage:
    work = {
        "stage": lineage.stage,
        "schema_version": lineage.schema_version,
        "config": lineage.config,
        "inputs": [source.fingerprint for source in lineage.inputs],
        "model": lineage.model and lineage.model.fingerprint,
        "part": lineage.part,
    }
    return dataclasses.replace(lineage, fingerprint=digest(canonical_json(work).encode()))


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # run from a checkout
        return "unknown"


def _difference(name: str, there: Any, asked: Any) -> str:
    same = canonical_json(there) == canonical_json(asked)
    return "" if same else f"{name}: {_show(there)} there, {_show(asked)} asked"


def _show(value: Any) -> str:
    return "nothing" if value is None else str(value)


def _show_part(lineage: Lineage) -> str | None:
    return f"{lineage.part[0]}/{lineage.part[1]}" if lineage.part else None


def _source_difference(there: Source | None, asked: Source | None) -> str:
    if (there and there.fingerprint) == (asked and asked.fingerprint):
        return ""
    name = next((source.stage for source in (asked, there) if source and source.stage), "input")
    if there and asked and there.path == asked.path:
        also = ", or the code of the reward," if name == "task" else ""
        return f"{name}: {asked.path}{also} has changed since"
    return _difference(name, there and there.path, asked and asked.path)
