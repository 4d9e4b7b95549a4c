"""Find what a report shows: the responses below each path, joined with the artefacts that were made from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from stages.configs.estimate import ROLLOUTS_NAME
from stages.configs.train import TOKEN_METRICS_NAME
from stages.core.errors import IncompleteInput, UserError
from stages.core.json_files import read_json
from stages.core.paths import AnyPath, log_directory
from stages.models.checkpoints import METRICS_FILE
from stages.shards.calls import Call, read_log
from stages.shards.lineage import Lineage, Source, read_lineage
from stages.shards.origin import trace_back
from stages.shards.parts import Artefact, open_artefact
from stages.shards.schemas import ADVANTAGES, CUTPOINTS, EVALUATION, ROLLOUTS, TOKEN_METRICS, TRAJECTORIES

Kind = Literal["train", "eval"]
AUDIT_FILE = "audit.json"
MODEL_STAGES = ("sft", "train")
"""The stages whose output is a model."""
START = -1
"""Number of the iteration that comes before the first one: the warm start."""


@dataclass(frozen=True)
class Responses:
    """A table of responses, with the segments that were cut from it and their advantages, where they exist.

    Attributes:
      run: index of the run.
      iteration: number of the iteration; `START` is the start of the run.
      kind: "train" for trajectories, "eval" for an evaluation.
      label: name in the report, such as "003" or "start eval".
      artefact: the trajectories or the evaluation.
      rollouts: the rollouts that were kept beside the advantages.
      tokens: the token metrics of a policy that was trained on the advantages.
    """

    run: int
    iteration: int
    kind: Kind
    label: str
    artefact: Artefact
    cutpoints: Artefact | None = None
    advantages: Artefact | None = None
    rollouts: Artefact | None = None
    tokens: Artefact | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A model that an iteration ended with, or the warm start.

    Attributes:
      lineage: of the model.
      calls: the calls that made the model, from its log.
      metrics: text of its metrics, one JSON object per optimizer step; "" if there are none.
    """

    run: int
    iteration: int
    lineage: Lineage
    metrics: str
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True)
class Audit:
    """The figures of `spo audit` in a directory: its audit.json."""

    run: int
    iteration: int
    label: str
    figures: dict[str, Any]


@dataclass
class Found:
    """Everything below the paths of a report.

    Attributes:
      runs: (name, path) of each path that was given.
      notes: what was left out, and why.
    """

    runs: list[tuple[str, str]] = field(default_factory=list)
    responses: list[Responses] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    audits: list[Audit] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find(paths: Sequence[AnyPath]) -> Found:
    """Return the contents of runs, iterations or single artefacts.

    Raises:
      UserError: a path does not exist, or there is nothing to show in it.
      IncompleteInput: a single artefact is incomplete; incomplete artefacts of a run are left out with a note.
    """
    found = Found()
    names = _distinct_names(paths)
    for run, (name, path) in enumerate(zip(names, paths, strict=True)):
        if not path.exists():
            raise UserError(f"{path} does not exist; expected a run, an artefact or a part")
        found.runs.append((name, str(path)))
        before = len(found.responses) + len(found.audits)
        if path.is_file() or _holds_parts(path):
            found.responses += _of_artefacts([open_artefact(path)], run, 0, "", found.notes)
        elif (path / AUDIT_FILE).is_file():
            found.audits.append(Audit(run, 0, "", _read_audit(path)))
            if _holds_parts(path / "reference"):
                found.responses += _of_artefacts([open_artefact(path / "reference")], run, 0, "", found.notes)
        else:
            for number, directory in _iterations(path):
                _read_iteration(directory, run, number, found)
        if len(found.responses) + len(found.audits) == before:
            raise UserError(
                f"{path} contains no complete trajectories, evaluation or audit; expected a run or an artefact"
            )
    return found


def _read_iteration(directory: AnyPath, run: int, number: int, found: Found) -> None:
    """Add the artefacts and the model of one iteration."""
    artefacts = []
    for child in sorted(directory.glob("[!._]*")):
        if not child.is_dir():
            continue
        try:
            if (child / AUDIT_FILE).is_file():
                found.audits.append(Audit(run, number, _iteration_name(number), _read_audit(child)))
            elif _holds_parts(child):
                artefacts.append(open_artefact(child))
            elif (lineage := read_lineage(child)) and lineage.stage in MODEL_STAGES:
                metrics = child / METRICS_FILE
                text = metrics.read_text() if metrics.is_file() else ""
                calls = tuple(read_log(log_directory(child) / f"{lineage.stage}.log"))
                found.checkpoints.append(Checkpoint(run, number, lineage, text, calls))
                if _holds_parts(child / TOKEN_METRICS_NAME):
                    artefacts.append(open_artefact(child / TOKEN_METRICS_NAME))
        except (IncompleteInput, UserError) as error:
            found.notes.append(f"left out: {error}")
    found.responses += _of_artefacts(artefacts, run, number, _iteration_name(number), found.notes)


def _read_audit(directory: AnyPath) -> dict[str, Any]:
    """Return the figures of an audit.

    Raises:
      UserError: the file cannot be read, or is not one of this version.
    """
    figures = read_json(directory / AUDIT_FILE)
    needed = {"states", "segments", "responses", "rollouts", "calibration", "by_rollouts", "recorded", "mask", "spent"}
    if not isinstance(figures, dict) or needed - figures.keys():
        raise UserError(
            f"{directory / AUDIT_FILE} is not an audit: expected a JSON object with {', '.join(sorted(needed))}"
        )
    return figures


def _of_artefacts(
    artefacts: Sequence[Artefact], run: int, number: int, label: str, notes: list[str]
) -> Iterator[Responses]:
    """Yield the responses behind artefacts of one iteration: the most derived artefact of each kind leads."""
    shown: set[str] = set()

    def of(stage: str) -> list[Artefact]:
        return [one for one in artefacts if one.schema.stage == stage and one.fingerprint() not in shown]

    def traced(get: Callable[[], Artefact], source: Artefact) -> Artefact | None:
        try:
            found = get()
        except (IncompleteInput, UserError) as error:
            notes.append(f"{source.path}: {error}")
            return None
        shown.add(found.fingerprint())
        return found

    tokens = {name: one for one in of(TOKEN_METRICS.stage) if (name := _trained_on(one))}
    advantages = of("estimate")
    advantages += _behind(tokens, advantages, notes)
    for one in advantages:
        trajectories = traced(lambda one=one: trace_back(one, TRAJECTORIES), one)
        if trajectories is not None:
            cutpoints = traced(lambda one=one: trace_back(one, CUTPOINTS), one)
            name = f"{label} {one.directory.name}".strip() if len(advantages) > 1 or not label else label
            seen = tokens.get(one.fingerprint()) or _tokens_beside(one, notes)
            yield Responses(
                run, number, "train", name, trajectories, cutpoints, one, _rollouts_beside(one, notes), seen
            )
    for one in of("segment"):
        trajectories = traced(lambda one=one: trace_back(one, TRAJECTORIES), one)
        if trajectories is not None:
            yield Responses(run, number, "train", label or one.directory.name, trajectories, one)
    for one in of("rollout"):
        yield Responses(run, number, "train", label or one.directory.name, one)
    for one in of(EVALUATION.stage):
        yield Responses(run, number, "eval", f"{label} {one.directory.name}".strip(), one)


def _trained_on(tokens: Artefact) -> str:
    """Return the fingerprint of the advantages of the current iteration that token metrics are of; "" if unknown."""
    source = _last_estimate(tokens)
    return source.fingerprint if source else ""


def _last_estimate(tokens: Artefact) -> Source | None:
    inputs = tokens.lineage.inputs if tokens.lineage else ()
    return next((one for one in reversed(inputs) if one.stage == ADVANTAGES.stage), None)


def _behind(tokens: dict[str, Artefact], advantages: Sequence[Artefact], notes: list[str]) -> Iterator[Artefact]:
    """Yield the advantages that token metrics are of and that are not among the given ones."""
    known = {one.fingerprint() for one in advantages}
    for name, one in tokens.items():
        if name in known or (source := _last_estimate(one)) is None:
            continue
        try:
            found = open_artefact(one.locate(source.path), ADVANTAGES)
            if found.fingerprint() == name:
                yield found
            else:
                notes.append(f"{one.path}: the advantages at {found.path} have changed since the training")
        except (IncompleteInput, UserError) as error:
            notes.append(f"{one.path}: {error}")


def _tokens_beside(advantages: Artefact, notes: list[str]) -> Artefact | None:
    """Return the token metrics of a model beside the advantages that was trained on them."""
    own = advantages.fingerprint()
    for directory in sorted(advantages.directory.parent.glob(f"[!._]*/{TOKEN_METRICS_NAME}")):
        try:
            found = open_artefact(directory, TOKEN_METRICS)
        except (IncompleteInput, UserError) as error:
            notes.append(f"left out: {error}")
            continue
        if _trained_on(found) == own:
            return found
    return None


def _rollouts_beside(advantages: Artefact, notes: list[str]) -> Artefact | None:
    """Return the rollouts that were kept beside the advantages, if they are of the same segments."""
    directory = advantages.directory.with_name(ROLLOUTS_NAME)
    if not directory.is_dir() or not _holds_parts(directory):
        return None
    try:
        found = open_artefact(directory, ROLLOUTS)
    except (IncompleteInput, UserError) as error:
        notes.append(f"left out: {error}")
        return None
    made_from = [
        {one.fingerprint for part in artefact.parts for one in (part.lineage.inputs if part.lineage else ())}
        for artefact in (advantages, found)
    ]
    if made_from[0] == made_from[1]:
        return found
    notes.append(f"left out: {directory} are not the rollouts of {advantages.path}")
    return None


def _iterations(path: AnyPath) -> Iterator[tuple[int, AnyPath]]:
    """Yield the directories that hold artefacts, with their number: the start, numbered iterations, then others."""
    directories = [child for child in sorted(path.glob("[!._]*")) if child.is_dir()]
    if any(_holds_parts(child) for child in directories):
        yield 0, path
        return
    numbered = [child for child in directories if child.name.isdigit()]
    others = [child for child in directories if not child.name.isdigit() and child.name != "start"]
    yield from ((START, child) for child in directories if child.name == "start")
    yield from ((int(child.name), child) for child in numbered)
    first = max((int(child.name) for child in numbered), default=START) + 1
    yield from enumerate(others, first)


def _holds_parts(directory: AnyPath) -> bool:
    return any(directory.glob("[!._]*.parquet")) or any(directory.glob(".part-*"))


def _iteration_name(number: int) -> str:
    return "start" if number == START else f"{number:03d}"


def _distinct_names(paths: Sequence[AnyPath]) -> list[str]:
    """Return the last name of each path, with its parent where two are equal."""
    names = [path.resolve().name for path in paths]
    return [
        name if names.count(name) == 1 else f"{path.resolve().parent.name}/{name}"
        for name, path in zip(names, paths, strict=True)
    ]
