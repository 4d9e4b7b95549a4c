"""Reading evaluations: the scores of all parts of one, the settings it was made with, and how those of two differ."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core.errors import IncompleteInput
from stages.evaluation.scores import COLUMNS, Scores, score
from stages.shards.parts import Artefact, open_artefact
from stages.shards.schemas import EVALUATION

_CHOICES = {"task", "max_tokens", "num_questions", "skip_questions", "shuffle_seed", "seed"}
"""Options that decide which questions there are, or which of equal draws: no settings that accuracies depend on."""

_LONGEST = 60  # characters of a setting in a warning: a prompt template may be long


@dataclass(frozen=True)
class Evaluation:
    """An evaluation as read.

    Attributes:
      path: as it was given.
      part: (index, count) where only one part of it was read.
      references: question id → the answer that was compared with.
      settings: the options of its sampling; empty where another tool made it.
    """

    path: Path
    artefact: Artefact
    scores: list[Scores]
    settings: dict[str, Any]
    part: tuple[int, int] | None = None


def read_evaluation(path: Path) -> Evaluation:
    """All parts of an evaluation.

    Raises:
      IncompleteInput: parts are missing or torn, or it holds no response.
      UserError: no evaluation.
    """
    artefact = open_artefact(path, EVALUATION)
    responses = artefact.read_all(COLUMNS)
    if not responses.num_rows:
        raise IncompleteInput(f"{path} holds no response to any question")
    part = artefact.lineage.part if artefact.lineage and path.is_file() else None
    return Evaluation(path, artefact, score(responses), settings(artefact), part)


def settings(artefact: Artefact) -> dict[str, Any]:
    """The options that an evaluation was made with; one that was graded again has those of what it was made from, too.

    Empty where another tool sampled the responses, or where what they were sampled for is no longer there.
    """
    lineage = artefact.lineage
    if lineage is None:
        return {}
    sampled_for = next((source for source in lineage.inputs if source.stage == EVALUATION.stage), None)
    if sampled_for is None:
        return lineage.config
    path = artefact.locate(sampled_for.path)
    before = settings(open_artefact(path, EVALUATION)) if path.exists() else {}
    return before and {**before, **lineage.config}


def warnings(first: Evaluation, second: Evaluation) -> list[str]:
    """What a reader of a comparison should know: settings that differ, other data, references that are not the same."""
    lines = []
    if first.settings and second.settings:
        names = [name for name in first.settings if name in second.settings and name not in _CHOICES]
        lines += [
            f"{name.replace('_', ' ')} differs: {_show(first.settings[name])} in {first.path}, "
            f"{_show(second.settings[name])} in {second.path}"
            for name in names
            if first.settings[name] != second.settings[name]
        ]
    else:
        silent = " and ".join(str(one.path) for one in (first, second) if not one.settings)
        lines.append(f"{silent} does not say how it was sampled: the settings may differ")
    return lines + _changed_references(first, second)


def _changed_references(first: Evaluation, second: Evaluation) -> list[str]:
    there, here = _references(second), _references(first)
    changed = [name for name, reference in here.items() if there.get(name, reference) != reference]
    if not changed:
        return []
    return [f"questions with another reference answer in {second.path}: {len(changed):,}, such as {changed[0]}"]


def _references(evaluation: Evaluation) -> dict[str, str]:
    table = evaluation.artefact.read_all(["question_id", "reference"])
    pairs = table.group_by(["question_id"]).aggregate([("reference", "min")])
    return dict(zip(pairs["question_id"].to_pylist(), pairs["reference_min"].to_pylist(), strict=True))


def _show(value: Any) -> str:
    if value is None or value == []:
        return "nothing"
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]!r}…"
