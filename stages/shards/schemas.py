"""Owns the columns of every artefact: their names, types, meaning, and what may be missing in a foreign file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa


@dataclass(frozen=True)
class Column:
    """One column of the contract.

    Attributes:
      name: as in the Parquet file.
      type: its Arrow type; foreign files are cast to it.
      doc: its meaning and unit, in one sentence; travels in the file as field metadata.
      nullable: whether the contract allows nulls.
      missing: what reading a file without lineage does where the column is absent: "refuse", fill it with "null", or
        "derive" it (`stages.shards.foreign`).
    """

    name: str
    type: pa.DataType
    doc: str
    nullable: bool = False
    missing: Literal["refuse", "null", "derive"] = "refuse"

    @property
    def field(self) -> pa.Field:
        """The Arrow field, with the meaning as its metadata."""
        return pa.field(self.name, self.type, nullable=self.nullable, metadata={"doc": self.doc})


@dataclass(frozen=True)
class Schema:
    """The table that one stage writes.

    Attributes:
      stage: the verb that writes it.
      version: raised whenever a column's name, type or meaning changes.
      columns: in the order of the file.
      row_group: rows per Parquet row group: fixed, so that the bytes do not depend on how the work was cut.
    """

    stage: str
    version: int
    columns: tuple[Column, ...]
    row_group: int

    @property
    def arrow(self) -> pa.Schema:
        """The Arrow schema, each field with its `doc`."""
        return pa.schema([column.field for column in self.columns])

    @property
    def names(self) -> tuple[str, ...]:
        """Column names in order."""
        return tuple(column.name for column in self.columns)

    def select(self, names: Iterable[str]) -> tuple[Column, ...]:
        """The columns of these names, in that order.

        Raises:
          KeyError: a name that the schema does not have.
        """
        by_name = {column.name: column for column in self.columns}
        return tuple(by_name[name] for name in names)

    def conform(self, table: pa.Table) -> pa.Table:
        """A table about to be written, in the contract's column order and types.

        Raises:
          ValueError: missing or further columns, a type that does not cast, a null where none is allowed.
        """
        if sorted(table.column_names) != sorted(self.names):
            raise ValueError(f"spo {self.stage} writes the columns {self.names}, got {tuple(table.column_names)}")
        for column in self.columns:
            if not column.nullable and table[column.name].null_count:
                raise ValueError(f"column {column.name} may not be null")
        return table.select(self.names).cast(self.arrow)


_TEXT, _INTS, _NUMBERS = pa.string(), pa.list_(pa.int32()), pa.list_(pa.float32())
_FINISH = "why the sampling ended: stop (end-of-text or a stop string), length (out of room)"

_QUESTION_ID = Column("question_id", _TEXT, "the question, by an id that never changes", missing="derive")
_PROMPT = Column("prompt", _TEXT, "the prompt's text (null: brought from elsewhere as ids only)", True, "null")
_PROMPT_IDS = Column("prompt_token_ids", _INTS, "the prompt as token ids, exactly as the model was given it")
_TOKEN_IDS = Column("token_ids", _INTS, "the sampled token ids, end-of-text included")
_TOKEN_LOGPROBS = Column(
    "logprobs",
    _NUMBERS,
    "natural log-probability of each sampled token under the temperature-scaled, full-vocabulary distribution",
)
_RESPONSE_TEXT = Column("text", _TEXT, "token_ids decoded, special tokens left out, for reading only", True, "null")
_ANSWER = Column("answer", _TEXT, "the answer extracted from the text (null: none found)", True, "null")
_REFERENCE = Column("reference", _TEXT, "the reference answer that the verifier compares with")

TRAJECTORIES = Schema(
    stage="rollout",
    version=1,
    row_group=4096,
    columns=(
        Column("trajectory_id", _TEXT, "<question_id>/<sample>; in a tree <question_id>/2.0.5", missing="derive"),
        Column("parent_id", _TEXT, "the trajectory that this one continues (null: the prompt)", True, "null"),
        _QUESTION_ID,
        Column("depth", pa.int32(), "how many stretches lie between this one and the prompt", missing="derive"),
        _PROMPT,
        _PROMPT_IDS,
        _TOKEN_IDS,
        _TOKEN_LOGPROBS,
        _RESPONSE_TEXT,
        Column("finish_reason", _TEXT, _FINISH + ", segment (goes on in its children)", missing="derive"),
        _ANSWER,
        _REFERENCE,
        Column("reward", pa.float32(), "the verifier's reward (null: an inner node, finish_reason segment)", True),
    ),
)

_SEGMENT_COLUMNS = (
    Column("trajectory_id", _TEXT, "the trajectory that the segment is a piece of"),
    Column("segment_index", pa.int32(), "its number within the trajectory, from 0"),
    Column("start", pa.int32(), "offset of its first token in token_ids"),
    Column("end", pa.int32(), "offset after its last token in token_ids"),
    Column("cutpoints", _INTS, "offsets in token_ids of its tokens with probability below rho: the probability mask"),
)

CUTPOINTS = Schema(stage="segment", version=2, row_group=65536, columns=_SEGMENT_COLUMNS)

ADVANTAGES = Schema(
    stage="estimate",
    version=3,
    row_group=65536,
    columns=(
        *_SEGMENT_COLUMNS,
        Column("value_start", pa.float64(), "V at the segment's start: expected final reward"),
        Column("value_end", pa.float64(), "V at the segment's end; the trajectory's reward for its last segment"),
        Column("advantage", pa.float64(), "value_end - value_start, which an estimator may scale or add to"),
        Column(
            "num_rollouts", pa.int32(), "rewards that value_start comes from: rollouts, leaves, responses (0: none)"
        ),
        Column("rewards", _NUMBERS, "these rewards, one by one"),
        Column("value_std", pa.float64(), "standard deviation, n - 1, of what value_start is a mean of", True, "null"),
    ),
)

EVALUATION = Schema(
    stage="eval",
    version=2,
    row_group=4096,
    columns=(
        Column("response_id", _TEXT, "<question_id>/<sample>; has a row for every budget"),
        Column("task", _TEXT, "the task of the question", True, "null"),
        _QUESTION_ID,
        Column("subject", _TEXT, "the question's subject (null: the task tells none)", True, "null"),
        Column("level", _TEXT, "the question's level of difficulty (null: the task tells none)", True, "null"),
        Column("sample", pa.int32(), "number of the response among those to its question, from 0"),
        Column("max_tokens", pa.int32(), "the budget: the response is cut off after this many tokens", True, "null"),
        _PROMPT,
        _PROMPT_IDS,
        _TOKEN_IDS,
        _TOKEN_LOGPROBS,
        _RESPONSE_TEXT,
        Column("finish_reason", _TEXT, _FINISH, missing="derive"),
        _ANSWER,
        _REFERENCE,
        Column("reward", pa.float32(), "the verifier's reward (null: it could not be graded)", True),
    ),
)

BY_STAGE: dict[str, Schema] = {schema.stage: schema for schema in (TRAJECTORIES, CUTPOINTS, ADVANTAGES, EVALUATION)}

ARTEFACT: dict[str, str] = {
    "rollout": "trajectories",
    "segment": "cutpoints",
    "estimate": "advantages",
    "eval": "evaluation responses",
}
"""What people call the table that a stage writes."""

READER: dict[str, str] = {"rollout": "segment", "segment": "estimate", "estimate": "train", "eval": "show"}
"""The command that takes the table of a stage."""


def recognize(columns: Iterable[str]) -> Schema | None:
    """The schema that a file without lineage is of, by the column that only it has; None where none is there."""
    names = set(columns)
    telling = {"advantage": ADVANTAGES, "cutpoints": CUTPOINTS, "response_id": EVALUATION, "token_ids": TRAJECTORIES}
    return next((schema for name, schema in telling.items() if name in names), None)
