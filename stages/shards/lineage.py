"""The lineage of a part or a model: how it was made, from which inputs, and the fingerprint of both.

The lineage is the JSON value under the key `spo` of a Parquet footer, or the file `spo.json` of a model directory. It
contains nothing that varies between two runs of the same work (no times, hosts or absolute paths), so that a part that
was interrupted and resumed is the same file, byte for byte. Times are in the logs.
"""

from __future__ import annotations

import dataclasses
import json
import math
import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from stages.core.config import results_config
from stages.core.errors import UserError
from stages.core.json_files import decoded, parse_json
from stages.core.paths import AnyPath, as_path, relative_path
from stages.core.storage import digest, write_atomically
from stages.core.store import StorePath
from stages.shards.schemas import Schema

FOOTER_KEY = b"spo"
MODEL_FILE = "spo.json"
"""Name of the lineage file in a model directory."""


@dataclass(frozen=True)
class Source:
    """An input of the work: an artefact, one part of it, a model, or the questions of a task.

    Attributes:
      path: path relative to the directory of the output; absolute if only one of them is in a store. For a model on the
        hub or a task, its name.
      fingerprint: fingerprint of the artefact or part, or digest of the file, the model's weights or the task's
        questions.
      stage: what wrote it ("rollout", "train", "task" …); "" if unknown.
    """

    path: str
    fingerprint: str
    stage: str = ""


@dataclass(frozen=True)
class Lineage:
    """How a part (or a model directory) was made.

    Attributes:
      stage, schema_version: the command that wrote it and the version of its table.
      config: the options that can change the result (`stages.core.config.results_config`).
      seed: the seed of the stage; None if it has none.
      fingerprint: digest of stage, schema version, config, fingerprints of inputs and model, and part. Paths are not in
        it, so that a run can be moved.
      inputs: the inputs, in an order that the stage fixes.
      model: the model that sampled or was trained.
      versions: versions of the packages that were used; not in the fingerprint.
      counts: whole numbers summed over the chunks, such as tokens sampled.
      summary: results of the stage about the whole part, e.g. its accuracy.
      part: (index, count) of the part; None for work that is not divided into parts.
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
        """Return indented JSON with sorted keys: equal lineages have equal texts."""
        return canonical_json(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str | bytes) -> Lineage:
        """Read the text that `to_json` wrote.

        Raises:
          UserError: the text is not a lineage of this version of spo.
        """
        try:
            lineage = decoded(lambda: cls._from_value(parse_json(text, "the lineage")), "the lineage")
        except UserError as error:
            raise UserError(f"expected a lineage written by this version of spo, found {text[:80]!r}") from error
        return lineage

    @classmethod
    def _from_value(cls, value: dict[str, Any]) -> Lineage:
        """Return the lineage of a parsed text; raise TypeError, ValueError or KeyError for any other value."""
        sources = [Source(**source) for source in value["inputs"]]
        model = None if value["model"] is None else Source(**value["model"])
        part = None if value["part"] is None else tuple(map(operator.index, value["part"]))
        lineage = cls(**{**value, "inputs": tuple(sources), "model": model, "part": part})
        texts = [lineage.stage, lineage.fingerprint, *lineage.versions.values()]
        texts += [text for source in (*sources, *filter(None, [model])) for text in dataclasses.astuple(source)]
        tables = [lineage.config, lineage.versions, lineage.counts, lineage.summary]
        if not all(isinstance(text, str) for text in texts) or not all(isinstance(table, dict) for table in tables):
            raise TypeError("a value has another type")
        if part is not None and not (len(part) == 2 and 0 <= part[0] < part[1]):
            raise ValueError("the number of the part is impossible")
        return dataclasses.replace(lineage, schema_version=operator.index(lineage.schema_version))

    def at(self, index: int, count: int) -> Lineage:
        """Return the lineage of part `index` of `count` of this work, with the fingerprint of the part."""
        return _fingerprinted(dataclasses.replace(self, part=(index, count)))


def describe(
    stage: str,
    schema: Schema | None,
    config: Any,
    inputs: tuple[Source, ...] = (),
    model: Source | None = None,
    packages: tuple[str, ...] = (),
    derived: Mapping[str, Any] | None = None,
    recorded: Collection[str] | None = None,
) -> Lineage:
    """Return the lineage of work that is about to start.

    Args:
      stage: the command.
      schema: the schema of the table that it writes; None for a model directory.
      config: the Config of the stage; its field `seed` becomes the seed of the lineage.
      inputs: artefacts (`stages.shards.parts.artefact_source`) and everything else that the rows depend on, e.g. the
        questions of a task (`task_source`).
      model: the model directory and the digest of its weights (`model_source`).
      packages: distributions that can influence the rows, e.g. ("torch", "transformers"); their versions are recorded.
      derived: further JSON values that can change the result and are not options, e.g. the age of an input. They are
        recorded with the options.
      recorded: names of the options to record, for work that reads some of the options alone. Default: all options that
        can change the rows.
    """
    options = {name: value for name, value in results_config(config).items() if recorded is None or name in recorded}
    lineage = Lineage(
        stage=stage,
        schema_version=schema.version if schema else 1,
        config=options | dict(derived or {}),
        seed=options.get("seed"),
        fingerprint="",
        inputs=inputs,
        model=model,
        versions={"spo-cli": _version("spo-cli")} | {name: metadata.version(name) for name in packages},
    )
    return _fingerprinted(lineage)


def model_source(model: str | AnyPath, digest: str, directory: AnyPath) -> Source:
    """Return a model as an input of the work in `directory`: a relative path, or the unchanged name on the hub."""
    return Source(_relative_or_name(str(model), directory), digest, "model")


def task_source(task: str, data: str | None, digest: str, directory: AnyPath) -> Source:
    """Return the questions of a task as an input of the work in `directory`: the path of its data, or its name."""
    return Source(_relative_or_name(data, directory) if data else task, digest, "task")


def one_deeper(source: Source) -> Source:
    """Return an input of work in a directory as an input of work in a subdirectory of it."""
    return dataclasses.replace(source, path=f"../{source.path}") if source.path.startswith("..") else source


def differences(found: Lineage, requested: Lineage) -> list[str]:
    """Return how existing work differs from requested work: `temperature: found 1.0, requested 0.6`, one per entry."""
    lines = [
        _difference(name.replace("_", " "), getattr(found, name), getattr(requested, name))
        for name in ("stage", "schema_version")
    ]
    names = [*found.config, *(name for name in requested.config if name not in found.config)]
    lines += [_difference(name, found.config.get(name), requested.config.get(name)) for name in names]
    lines.append(_difference("part", _show_part(found), _show_part(requested)))
    if len(found.inputs) != len(requested.inputs):
        lines.append(_difference("inputs", len(found.inputs), len(requested.inputs)))
    sources = [*zip(found.inputs, requested.inputs, strict=False), (found.model, requested.model)]
    return [line for line in [*lines, *(_source_difference(*pair) for pair in sources)] if line]


def write_lineage(directory: AnyPath, lineage: Lineage) -> None:
    """Write the lineage of a model into its directory."""
    write_atomically(directory / MODEL_FILE, f"{lineage.to_json()}\n".encode())


def read_lineage(directory: AnyPath) -> Lineage | None:
    """Return the lineage of a model directory; None if spo did not write it.

    Raises:
      UserError: the lineage file cannot be read.
    """
    path = directory / MODEL_FILE
    if not path.is_file():
        return None
    try:
        return Lineage.from_json(path.read_bytes())
    except (OSError, UserError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def combine(fingerprints: list[str]) -> str:
    """Return one fingerprint for several, which depends on their order; a single one is returned unchanged."""
    return fingerprints[0] if len(fingerprints) == 1 else digest(canonical_json(fingerprints).encode())


def canonical_json(value: Any, indent: int | None = None) -> str:
    """Return JSON with sorted keys; NumPy numbers become plain ones, NaN and infinity become null.

    Args:
      indent: spaces per level; None: one line without spaces.
    """
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(
        _plain(value), sort_keys=True, separators=separators, indent=indent, ensure_ascii=False, allow_nan=False
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):  # a NumPy number
        return _plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _relative_or_name(name: str, directory: AnyPath) -> str:
    """Return an existing path relative to `directory`; any other text is a name on the hub and stays unchanged."""
    path = as_path(name).expanduser()
    return relative_path(path, directory) if isinstance(path, StorePath) or path.exists() else name


def _fingerprinted(lineage: Lineage) -> Lineage:
    # The keys and their values define every fingerprint: a change here makes all existing work out of date.
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
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


def _difference(name: str, found: Any, requested: Any) -> str:
    """Return one difference; "" if the values are the same."""
    same = canonical_json(found) == canonical_json(requested)
    return "" if same else f"{name}: found {_show(found)}, requested {_show(requested)}"


def _show(value: Any) -> str:
    return "nothing" if value is None else str(value)


def _show_part(lineage: Lineage) -> str | None:
    return f"{lineage.part[0]}/{lineage.part[1]}" if lineage.part else None


def _source_difference(found: Source | None, requested: Source | None) -> str:
    if (found and found.fingerprint) == (requested and requested.fingerprint):
        return ""
    name = next((source.stage for source in (requested, found) if source and source.stage), "input")
    if found and requested and found.path == requested.path:
        also = ", or the code of the reward," if name == "task" else ""  # a task's digest covers its reward function
        return f"{name}: {requested.path}{also} has changed since"
    return _difference(name, found and found.path, requested and requested.path)
