"""`spo grade`: grade responses that exist, so that a reward can be tried before training: verdicts with their reasons.

Responses come from any file with a column of responses and one of reference answers, or from trajectories or an
evaluation. Nothing is sampled. Suspicious verdicts come first: those that a reader would look at to judge the grader.
"""

# pyarrow.compute makes its functions at import time:
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from stages.configs.grade import Config
from stages.core.errors import UserError, did_you_mean, first_line
from stages.core.paths import AnyPath
from stages.core.progress import Progress, Silent
from stages.core.storage import replacing
from stages.responses.grading import verify_all
from stages.shards.parts import Artefact, open_artefact
from stages.shards.schemas import EVALUATION, TRAJECTORIES
from stages.tasks import Task, open_task
from stages.tasks.columns import ROLES, read_response
from stages.tasks.data import read_rows
from stages.tasks.datasets import Dataset
from stages.tasks.verdicts import Place, Reason, Verdict

RESPONSE_COLUMNS = ("text", "response", "completion", "output", "prediction", "generated_text", "resps")
"""Names of a column of responses; the first that exists is used."""
_LOOSE_PLACES = (Place.WHOLE_TEXT, Place.LAST_NUMBER, Place.NOWHERE)
_TAIL = 300  # characters at the end of a response in which an overlooked reference is searched
_STEP = pa.struct([("name", pa.string()), ("result", pa.string())])
_FIELDS = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("response", pa.string()),
        ("reference", pa.string()),
        ("verdict", pa.string()),
        ("reward", pa.float64()),
        ("answer", pa.string()),
        ("stated", pa.string()),
        ("place", pa.string()),
        ("reason", pa.string()),
        ("suspicion", pa.string()),
        ("steps", pa.list_(_STEP)),
    ]
)


class Given(NamedTuple):
    """A response to grade: its id if it has one, its text, and the columns of its row."""

    id: str | None
    response: str
    columns: Mapping[str, Any]


@dataclass(frozen=True)
class GradedRow:
    """One graded response.

    Attributes:
      row: number of the response in its file, from 0.
      id: its id, if the file has ids.
      suspicion: why a reader should look at the verdict; "" if nothing is suspicious.
    """

    row: int
    id: str | None
    response: str
    reference: str
    verdict: Verdict
    suspicion: str

    @property
    def label(self) -> str:
        """Return `right`, `wrong`, `no answer`, `not gradable`, or `reward` for other rewards and reward functions."""
        reward, reason = self.verdict.reward, self.verdict.reason
        if reward is None:
            return "not gradable"
        if reason == Reason.REWARD_FUNCTION or reward not in (0, 1):
            return "reward"
        return "right" if reward else "no answer" if self.verdict.answer is None else "wrong"

    def as_dict(self) -> dict[str, Any]:
        """Return the columns of `spo grade --out` and `--json`."""
        verdict = self.verdict
        return {
            "row": self.row,
            "id": self.id,
            "response": self.response,
            "reference": self.reference,
            "verdict": self.label,
            "reward": verdict.reward,
            "answer": verdict.answer,
            "stated": verdict.stated,
            "place": str(verdict.place),
            "reason": str(verdict.reason),
            "suspicion": self.suspicion,
            "steps": [step._asdict() for step in verdict.steps],
        }


@dataclass(frozen=True)
class Grades:
    """All graded responses, the suspicious ones first, and what the command prints of them.

    Attributes:
      counts: label → number of responses.
    """

    config: Config
    task: str
    rows: Sequence[GradedRow]
    counts: Mapping[str, int]


def run(config: Config, progress: Progress = Silent()) -> Grades:
    """Grade the responses of a file or an artefact.

    Raises:
      UserError: an unreadable file, a missing column, an unknown task or grader, or an unusable reference.
      IncompleteInput: parts of an artefact are missing or corrupt.
    """
    given, recorded = _read(config)
    task = _open_task(config, recorded)
    references = [
        _reference(task, one.columns, f"{config.responses} row {i}") if recorded is None else one.columns["reference"]
        for i, one in enumerate(given)
    ]
    progress.start("grade", len(given), "responses")
    verdicts = verify_all(task, [one.response for one in given], references)
    progress.advance(len(given))
    graded = [
        GradedRow(i, one.id, one.response, gold, verdict, find_suspicion(verdict, one.response, gold))
        for i, (one, gold, verdict) in enumerate(zip(given, references, verdicts, strict=True))
    ]
    if config.out is not None:
        table = pa.Table.from_pylist([one.as_dict() for one in graded], schema=_FIELDS)
        config.out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(config.out) as file:
            pq.write_table(table, file)
    counts = Counter(one.label for one in graded)
    return Grades(config, task.name, sorted(graded, key=lambda one: not one.suspicion), dict(counts.most_common()))


def find_suspicion(verdict: Verdict, response: str, reference: str) -> str:
    """Return why a reader should look at a verdict; "" if nothing is suspicious."""
    if verdict.reward is None:
        return "not gradable"
    if verdict.reason == Reason.REWARD_FUNCTION:
        return ""
    if verdict.reward == 0 and reference.strip() and reference.strip() in response[-_TAIL:]:
        return "the response ends with the reference, and earns nothing"
    if verdict.reward > 0 and verdict.place in _LOOSE_PLACES:
        return f"right, but read from the {verdict.place}"
    return ""


def _open_task(config: Config, recorded: Mapping[str, Any] | None) -> Task:
    """Return the task that grades: the one given, else the one recorded with the responses, else `custom`."""
    names = recorded.get("task") if recorded else None
    names = [names] if isinstance(names, str) else names or []
    if config.task is None and len(names) > 1:
        raise UserError(f"{config.responses} has the tasks {', '.join(names)}: name one with --task")
    args = list(config.task_arg or ())
    if config.task is None and config.task_arg is None and recorded:
        args = list(recorded.get("task_arg") or ())
    args += [f"grader={config.grader}"] * (config.grader is not None)
    args += [f"answer={config.answer_column}"] * (config.answer_column is not None)
    return open_task(config.task or next(iter(names), "custom"), None, args)


def _read(config: Config) -> tuple[list[Given], Mapping[str, Any] | None]:
    """Return the responses, and the options that the artefact records; None for any other file."""
    path = config.responses
    if not path.exists():
        raise UserError(f"{path} does not exist; expected a file of responses, trajectories or an evaluation")
    if path.is_dir() or (path.suffix == ".parquet" and _is_artefact(path)):
        artefact = open_artefact(path)
        if artefact.schema not in (TRAJECTORIES, EVALUATION):
            raise UserError(f"{path} holds neither trajectories nor an evaluation; expected one of them, or a file")
        return _artefact_responses(artefact), artefact.lineage.config if artefact.lineage else {}
    records = read_rows(path)
    column = config.response_column or next((name for name in RESPONSE_COLUMNS if records and name in records[0]), None)
    if records and column not in records[0]:
        wanted, found = column or " or ".join(RESPONSE_COLUMNS), list(records[0])
        guess = did_you_mean(column, found) if column else " Name yours with --response-column"
        raise UserError(f"{path} has no column {wanted}; found {', '.join(found)}.{guess}")
    if not records:
        raise UserError(f"{path} has no rows; expected responses to grade")
    texts = [read_response(record[str(column)], f"{path} row {i}: column {column}") for i, record in enumerate(records)]
    return [Given(None, text, record) for text, record in zip(texts, records, strict=True)], None


def _is_artefact(path: AnyPath) -> bool:
    """Return whether a Parquet file has the columns of trajectories or an evaluation."""
    try:
        with path.open("rb") as file:
            return {"token_ids", "reference"} <= set(pq.read_schema(file).names)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as Parquet: {first_line(error)}") from error


def _artefact_responses(artefact: Artefact) -> list[Given]:
    """Return the responses of an artefact; one of a tree is the text of its leaf after those of the nodes above it."""
    key = "trajectory_id" if artefact.schema is TRAJECTORIES else "response_id"
    parents = ["parent_id"] if artefact.schema is TRAJECTORIES else []
    rows = artefact.read_all([key, *parents, "text", "finish_reason", "reference"]).to_pylist()
    by_id = {row[key]: row for row in rows}
    found = []
    for row in rows:
        if row["finish_reason"] == "segment":
            continue
        text, node = row["text"], row
        while text is not None and (node := by_id.get(node.get("parent_id"))) is not None:
            text = None if node["text"] is None else node["text"] + text
        if text is None:
            raise UserError(f"{artefact.path} has no text of {row[key]}; expected the decoded response in column text")
        found.append(Given(row[key], text, row))
    return found


def _reference(task: Task, columns: Mapping[str, Any], location: str) -> str:
    """Return the reference of a row: as the task's grader or reward function takes it, or the text in its column."""
    if isinstance(task, Dataset):
        return task.columns.reference(columns, location)
    found = next((columns[name] for name in ROLES["answer"] if columns.get(name) is not None), None)
    if not isinstance(found, str):
        raise UserError(f"{location} must have a text in the column {' or '.join(ROLES['answer'])}; got {found!r:.60}")
    return found
