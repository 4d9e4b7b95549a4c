"""Read evaluations: the scores of all parts, the sampling options, and what makes two evaluations differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stages.core.errors import IncompleteInput
from stages.core.paths import AnyPath
from stages.evaluation.scores import COLUMNS, Scores, score
from stages.shards.parts import Artefact, open_artefact
from stages.shards.schemas import EVALUATION

_UNCOMPARED = {"task", "max_tokens", "num_questions", "skip_questions", "shuffle_seed", "seed"}
"""Options that select questions, budgets or random numbers: a difference in them does not bias a comparison."""

_MAX_SHOWN = 60  # characters of an option in a warning: a prompt template may be long


@dataclass(frozen=True)
class Evaluation:
    """An evaluation that was read from disk.

    Attributes:
      path: as given by the user.
      scores: by task and budget.
      settings: its sampling options by name; empty if another tool sampled it.
      part: (index, count) if only this part was read.
    """

    path: AnyPath
    artefact: Artefact
    scores: list[Scores]
    settings: dict[str, Any]
    part: tuple[int, int] | None = None


def read_evaluation(path: AnyPath) -> Evaluation:
    """Read all parts of an evaluation.

    Raises:
      IncompleteInput: parts are missing or corrupt, or there is no response.
      UserError: the path is not an evaluation.
    """
    artefact = open_artefact(path, EVALUATION)
    responses = artefact.read_all(COLUMNS)
    if not responses.num_rows:
        raise IncompleteInput(f"{path} holds no responses; expected at least one")
    part = artefact.lineage.part if artefact.lineage and path.is_file() else None
    return Evaluation(path, artefact, score(responses), read_settings(artefact), part)


def read_settings(artefact: Artefact) -> dict[str, Any]:
    """Return the options that an evaluation was made with, by name.

    A regraded evaluation has the options of the original evaluation too. The result is empty if another tool sampled
    the responses, or if the original evaluation no longer exists.
    """
    lineage = artefact.lineage
    if lineage is None:
        return {}
    original = next((source for source in lineage.inputs if source.stage == EVALUATION.stage), None)
    if original is None:
        return lineage.config
    path = artefact.locate(original.path)
    before = read_settings(open_artefact(path, EVALUATION)) if path.exists() else {}
    return before and {**before, **lineage.config}


def comparison_warnings(first: Evaluation, second: Evaluation) -> list[str]:
    """Return warnings about a comparison: options that differ or are unknown, and changed reference answers."""
    lines = []
    if first.settings and second.settings:
        names = [name for name in first.settings if name in second.settings and name not in _UNCOMPARED]
        lines += [
            f"{name.replace('_', ' ')} differs: {_show(first.settings[name])} in {first.path}, "
            f"{_show(second.settings[name])} in {second.path}"
            for name in names
            if first.settings[name] != second.settings[name]
        ]
    else:
        unknown = " and ".join(str(one.path) for one in (first, second) if not one.settings)
        lines.append(f"no sampling options are recorded with {unknown}: the settings may differ")
    return lines + _changed_references(first, second)


def _changed_references(first: Evaluation, second: Evaluation) -> list[str]:
    """Return a warning if questions of both evaluations have different reference answers."""
    ours, theirs = _references(first), _references(second)
    changed = [name for name, reference in ours.items() if theirs.get(name, reference) != reference]
    if not changed:
        return []
    return [f"questions with another reference answer in {second.path}: {len(changed):,}, such as {changed[0]}"]


def _references(evaluation: Evaluation) -> dict[str, str]:
    """Return the reference answer of each question, by question id."""
    table = evaluation.artefact.read_all(["question_id", "reference"])
    pairs = table.group_by(["question_id"]).aggregate([("reference", "min")])
    return dict(zip(pairs["question_id"].to_pylist(), pairs["reference_min"].to_pylist(), strict=True))


def _show(value: Any) -> str:
    """Return an option as a warning shows it: shortened if it is long."""
    if value is None or value == []:
        return "nothing"
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]!r}…"
