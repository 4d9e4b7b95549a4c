"""Turn responses and their segments into the columns of a report: one row per response, or per node of a tree."""

# pyarrow.compute makes its functions at import time:
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages.maths.ragged import offsets_of
from stages.reporting.columns import smallest
from stages.reporting.reasons import reasons
from stages.reporting.selection import ROLLOUT_CHARACTERS, largest_budget
from stages.reporting.sources import Responses
from stages.reporting.tokens import find_decoder, readable_tokens
from stages.responses.trees import parent_rows
from stages.shards.parts import Artefact
from stages.shards.schemas import EVALUATION, ROLLOUTS, TOKEN_METRICS
from stages.shards.tables import ragged, rows_by_name

_SEGMENTS = pa.schema(
    {
        "trajectory_id": pa.string(),
        "segment_index": pa.int32(),
        "start": pa.int32(),
        "end": pa.int32(),
        "cutpoints": pa.list_(pa.int32()),
        "value_start": pa.float64(),
        "value_end": pa.float64(),
        "advantage": pa.float64(),
        "value_std": pa.float64(),
        "num_rollouts": pa.int32(),
        "rewards": pa.list_(pa.float32()),
    }
)
_SEEN: dict[str, type[np.generic]] = {
    "step": np.uint32,
    "old_logprob": np.float32,
    "new_logprob": np.float32,
    "entropy": np.float32,
    "ratio": np.float32,
    "clipped": np.uint8,
    "advantage": np.float32,
}
"""Columns of the token metrics that the page shows; the sampler's log-probability is that of the token."""
_FINISH = ("stop", "length", "segment")
_OPTIONAL = ("prompt", "text", "answer", "reference", "reward", "verdict_reason")
_OPTIONS = {
    "cutpoints": ("partition", "rho", "interval", "segment_tokens", "num_segments"),
    "advantages": ("estimator", "baseline", "normalize_by", "best_of", "rollouts", "keep_zero"),
}


@dataclass
class _Names:
    """Distinct values in order of first appearance, and their numbers."""

    numbers: dict[Any, int] = field(default_factory=dict)

    def number(self, value: Any) -> int:
        """Return the number of a value; −1 for None."""
        return -1 if value is None else self.numbers.setdefault(value, len(self.numbers))


class Collector:
    """The columns of all responses of a report; `add` appends the rows of one table.

    Args:
      questions: ids of the questions to keep.
    """

    def __init__(self, questions: set[str]) -> None:
        self.tables: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self._keep = pa.array(sorted(questions), pa.string())
        self._questions: dict[str, tuple[int, str | None, str | None]] = {}
        self._strings, self._vocabulary = _Names(), _Names()
        self._names: list[str] = []
        self._columns: dict[str, list[NDArray]] = {}
        self._rows = self._tokens = self._rollouts = 0

    def add(self, responses: Responses) -> None:
        """Append the chosen rows of a table, and its segments."""
        artefact = responses.artefact
        key = "response_id" if artefact.schema is EVALUATION else "trajectory_id"
        table = largest_budget(_read(responses, key))
        rows = table.filter(pc.is_in(table["question_id"], value_set=self._keep))
        first = self._rows
        self._add_rows(responses, rows, key)
        self._add_segments(responses, rows[key])
        self._add_seen(responses.tokens, rows[key], ragged(rows["token_ids"]).offsets)
        self._add_rollouts(responses.rollouts, rows[key])
        self._rows += rows.num_rows
        self._tokens += int(pc.sum(pc.list_value_length(rows["token_ids"])).as_py() or 0)
        self.tables.append(
            {
                "run": responses.run,
                "iteration": responses.iteration,
                "kind": responses.kind,
                "label": responses.label,
                "path": str(artefact.path),
                "first": first,
                "rows": rows.num_rows,
                "rows_in_all": artefact.rows,
                "options": _recorded_options(responses),
                "segments": responses.cutpoints is not None or responses.advantages is not None,
                "advantages": responses.advantages is not None,
                "seen": responses.tokens is not None,
                "rollouts": responses.rollouts is not None,
            }
        )

    def result(self) -> tuple[dict[str, Any], dict[str, NDArray]]:
        """Return the JSON values and the arrays of all tables (`stages.reporting.columns.pack`)."""
        columns = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        for name in ("row.first", "segment.reward_first"):  # lengths become offsets
            columns[name] = offsets_of(columns[name]).astype(np.uint32)
        for name in ("token.word", "row.question", "row.table", "seen.step"):
            columns[name] = smallest(columns[name])
        values = {
            "tables": self.tables,
            "questions": {
                "id": list(self._questions),
                "prompt": [prompt for _, prompt, _ in self._questions.values()],
                "reference": [reference for _, _, reference in self._questions.values()],
            },
            "rows": {"name": self._names},
            "strings": list(self._strings.numbers),
            "words": [text for _, text in self._vocabulary.numbers],
        }
        columns["word.id"] = np.array([number for number, _ in self._vocabulary.numbers], np.int32)
        return values, columns

    def _append(self, name: str, values: Any, dtype: type[np.generic]) -> None:
        self._columns.setdefault(name, []).append(np.asarray(values, dtype))

    def _add_rows(self, responses: Responses, rows: pa.Table, key: str) -> None:
        """Append the columns of responses: identity, outcome, tokens."""
        count = rows.num_rows
        questions = rows["question_id"].to_pylist()
        prompts, references = rows["prompt"].to_pylist(), rows["reference"].to_pylist()
        for name, prompt, reference in zip(questions, prompts, references, strict=True):
            self._questions.setdefault(name, (len(self._questions), prompt, reference))
        self._names += rows[key].to_pylist()
        parent = parent_rows(rows) if "parent_id" in rows.column_names else np.full(count, -1)
        reasons = [_FINISH.index(one) if one in _FINISH else len(_FINISH) for one in rows["finish_reason"].to_pylist()]
        self._append("row.table", np.full(count, len(self.tables)), np.int64)
        self._append("row.question", [self._questions[name][0] for name in questions], np.int64)
        self._append("row.parent", np.where(parent < 0, -1, parent + self._rows), np.int32)
        self._append("row.finish", reasons, np.uint8)
        self._append("row.reward", rows["reward"].to_numpy(), np.float32)
        self._append("row.answer", [self._strings.number(one) for one in rows["answer"].to_pylist()], np.int32)
        why = self._reasons(responses, rows, parent)
        self._append("row.verdict_reason", [self._strings.number(one) for one in why], np.int32)
        self._add_tokens(responses, rows)

    def _reasons(self, responses: Responses, rows: pa.Table, parent: NDArray[np.int64]) -> list[str | None]:
        """Return the reason of each verdict: as a column of another tool holds it, else that of the recorded task."""
        recorded = rows["verdict_reason"].to_pylist()
        if any(recorded):
            return recorded
        texts = rows["text"].to_pylist()
        if (parent >= 0).any():
            texts = _texts_of_leaves(texts, parent)
        found, note = reasons(responses.artefact, texts, rows["reference"].to_pylist())
        self.notes += [f"{responses.label}: {note}"] if note else []
        return found

    def _add_tokens(self, responses: Responses, rows: pa.Table) -> None:
        """Append the tokens of responses: word numbers and log-probabilities."""
        decode, note = find_decoder(responses.artefact)
        tokens, texts = ragged(rows["token_ids"]), rows["text"].to_pylist()
        words: list[int] = []
        notes = {note} if note else set()
        number = self._vocabulary.number
        for ids, text in zip(tokens, texts, strict=True):
            ids = ids.tolist()
            readable, guessed = readable_tokens(ids, text, decode)
            notes |= {guessed} if guessed else set()
            words += map(number, zip(ids, readable, strict=True))
        self.notes += [f"{responses.label}: {one}" for one in sorted(notes)]
        self._append("row.first", tokens.lengths, np.int64)
        self._append("token.word", words, np.int64)
        self._append("token.logprob", ragged(rows["logprobs"]).flat, np.float32)

    def _add_segments(self, responses: Responses, names: pa.ChunkedArray) -> None:
        """Append the segments of responses, ordered by row and start; values are NaN where they were not written."""
        table = _segments(responses)
        owner = rows_by_name(table["trajectory_id"], names)
        table, owner = table.filter(pa.array(owner >= 0)), owner[owner >= 0]
        order = np.lexsort((table["start"].to_numpy(), owner))
        table, owner = table.take(pa.array(order)), owner[order]
        self._append("segment.row", owner + self._rows, np.int32)
        for name in ("start", "end", "num_rollouts"):
            self._append(f"segment.{name}", table[name].to_numpy(), np.int32)
        for name in ("value_start", "value_end", "advantage", "value_std"):
            self._append(f"segment.{name}", table[name].to_numpy(), np.float64)
        rewards = ragged(table["rewards"])
        self._append("segment.reward_first", rewards.lengths, np.int64)
        self._append("segment.rewards", rewards.flat, np.float32)
        self._append("token.cut", self._cuts(table, owner), np.uint8)

    def _add_seen(self, tokens: Artefact | None, names: pa.ChunkedArray, first: NDArray[np.int64]) -> None:
        """Append what the trainer saw of kept tokens, ordered by token and step.

        Args:
          tokens: the token metrics; None: there are none.
          names: id of each row that was appended last.
          first: [rows + 1], number of tokens in the rows before each row.
        """
        table = TOKEN_METRICS.arrow.empty_table() if tokens is None else tokens.read_all(TOKEN_METRICS.names)
        table = table.filter(pc.equal(table["age"], 0))
        owner = rows_by_name(table["trajectory_id"], names)
        table, owner = table.filter(pa.array(owner >= 0)), owner[owner >= 0]
        token = first[owner] + table["position"].to_numpy() + self._tokens
        order = np.lexsort((table["step"].to_numpy(), token))
        self._append("seen.token", token[order], np.uint32)
        for name, dtype in _SEEN.items():
            self._append(f"seen.{name}", table[name].to_numpy(zero_copy_only=False)[order], dtype)

    def _add_rollouts(self, rollouts: Artefact | None, names: pa.ChunkedArray) -> None:
        """Append the kept rollouts, and for each state of a response which of them start there.

        A state has one entry for each response that passes through it; all of them name the same rollouts.
        """
        table = _rollouts_of(rollouts, self._keep)
        first: dict[str, int] = {}
        count: dict[str, int] = {}
        owners: dict[str, tuple[list[str], int]] = {}
        for number, (state, passing, start) in enumerate(
            zip(*(table[name].to_pylist() for name in ("state_id", "trajectory_ids", "start")), strict=True)
        ):
            first.setdefault(state, number + self._rollouts)
            count[state] = count.get(state, 0) + 1
            owners[state] = passing, start
        states = [(name, state, start) for state, (passing, start) in owners.items() for name in passing]
        owner = rows_by_name(pa.array([name for name, _, _ in states], pa.string()), names)
        states = [one for one, row in zip(states, owner.tolist(), strict=True) if row >= 0]
        self._append("state.row", owner[owner >= 0] + self._rows, np.int32)
        self._append("state.start", [start for _, _, start in states], np.int32)
        self._append("state.first", [first[state] for _, state, _ in states], np.uint32)
        self._append("state.count", [count[state] for _, state, _ in states], np.uint32)
        texts = (_shortened(text) for text in table["text"].to_pylist())
        self._append("rollout.text", [self._strings.number(one) for one in texts], np.int32)
        self._append("rollout.reward", table["reward"].to_numpy(), np.float32)
        reasons = [_FINISH.index(one) if one in _FINISH else len(_FINISH) for one in table["finish_reason"].to_pylist()]
        self._append("rollout.finish", reasons, np.uint8)
        self._append("rollout.tokens", pc.list_value_length(table["token_ids"]).to_numpy(), np.uint32)
        self._rollouts += table.num_rows

    def _cuts(self, table: pa.Table, owner: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return whether each token of the rows that were appended last is a recorded cutpoint."""
        lengths = self._columns["row.first"][-1]
        flags, offsets = np.zeros(int(lengths.sum()), np.uint8), offsets_of(lengths)
        cutpoints = ragged(table["cutpoints"])
        flags[np.repeat(offsets[owner], cutpoints.lengths) + cutpoints.flat] = 1
        return flags


def _read(responses: Responses, key: str) -> pa.Table:
    """Return the columns of a table that a report shows; optional ones that the files lack are null."""
    artefact = responses.artefact
    names = artefact.schema.names
    present = set(names) if artefact.lineage else set.intersection(*(set(part.columns) for part in artefact.parts))
    structure = [name for name in ("parent_id", "max_tokens") if name in names]
    read = [key, "question_id", "token_ids", "logprobs", "finish_reason", *structure]
    optional = [name for name in _OPTIONAL if name in names and name in present]
    table = artefact.read_all([*read, *optional])
    for name in _OPTIONAL:
        if name not in optional:
            kind = pa.float32() if name == "reward" else pa.string()
            table = table.append_column(name, pa.nulls(table.num_rows, kind))
    return table


def _texts_of_leaves(texts: list[str | None], parent: NDArray[np.int64]) -> list[str | None]:
    """Return the text of the whole response that ends in each leaf of a tree; None for inner nodes."""
    inner = set(parent.tolist())
    found: list[str | None] = []
    for row in range(len(texts)):
        parts, node = [], row
        while node >= 0:
            parts.append(texts[node])
            node = int(parent[node])
        whole = None if row in inner or None in parts else "".join(part for part in reversed(parts) if part)
        found.append(whole)
    return found


def _rollouts_of(rollouts: Artefact | None, questions: pa.Array) -> pa.Table:
    """Return the kept rollouts of the questions, those of a state together and in the order of their numbers."""
    if rollouts is None:
        return ROLLOUTS.arrow.empty_table()
    names = ("question_id", "state_id", "trajectory_ids", "start", "sample", "token_ids", "text", "finish_reason")
    table = rollouts.read_all([*names, "reward"])
    table = table.filter(pc.is_in(table["question_id"], value_set=questions))
    return table.sort_by([("state_id", "ascending"), ("sample", "ascending")])


def _shortened(text: str) -> str:
    """Return the characters of a text that a report shows."""
    return text if len(text) <= ROLLOUT_CHARACTERS else f"{text[:ROLLOUT_CHARACTERS]}…"


def _segments(responses: Responses) -> pa.Table:
    """Return the segments of responses with their advantages (`_SEGMENTS`); values that are not known are null."""
    structure = ["trajectory_id", "segment_index", "start", "end", "cutpoints"]
    tables = [_SEGMENTS.empty_table()]
    if responses.advantages is not None:
        tables.append(_complete(responses.advantages.read_all(_SEGMENTS.names)))
    if responses.cutpoints is not None:
        # Estimators may leave out segments without an advantage; their places and cutpoints come from the cutpoints.
        tables.append(_left_out(_complete(responses.cutpoints.read_all(structure)), pa.concat_tables(tables)))
    return pa.concat_tables(tables)


def _complete(table: pa.Table) -> pa.Table:
    """Return a table with all columns of `_SEGMENTS`; those that it lacks are null, 0 or empty."""
    count = table.num_rows
    empty: dict[str, pa.Array] = {
        "num_rollouts": pa.array(np.zeros(count, np.int32)),
        "rewards": pa.array([[]] * count, _SEGMENTS.field("rewards").type),
    }
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else empty.get(field.name, pa.nulls(count, field.type))
        for field in _SEGMENTS
    ]
    return pa.table(columns, schema=_SEGMENTS)


def _left_out(bare: pa.Table, valued: pa.Table) -> pa.Table:
    """Return the segments of `bare` that are not in `valued`."""

    def keys(table: pa.Table) -> pa.ChunkedArray:
        return pc.binary_join_element_wise(table["trajectory_id"], pc.cast(table["segment_index"], pa.string()), " ")

    return bare.filter(pc.invert(pc.is_in(keys(bare), value_set=keys(valued).combine_chunks())))


def _recorded_options(responses: Responses) -> dict[str, Any]:
    """Return the options of `spo segment` and `spo estimate` that the page recomputes with."""
    options: dict[str, Any] = {}
    for name, known in _OPTIONS.items():
        artefact = getattr(responses, name)
        lineage = artefact.lineage if artefact else None
        options |= {option: lineage.config[option] for option in known if lineage and option in lineage.config}
    return options
