"""The tables that the stages exchange: columns with their types and meaning, schema versions, names for messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
      name: the column's name in the Parquet file.
      type: its Arrow type; foreign files are cast to it.
      doc: its meaning and unit in one sentence; stored in the file as metadata of the field.
      nullable: whether nulls are allowed.
      missing: what reading does when a file without lineage lacks the column: "refuse" the file, fill with "null", or
        "derive" the values from other columns (`stages.shards.foreign`).
    """

    name: str
    type: pa.DataType
    doc: str
    nullable: bool = False
    missing: Literal["refuse", "null", "derive"] = "refuse"

    @property
    def field(self) -> pa.Field:
        """Return the Arrow field, with `doc` in its metadata."""
        return pa.field(self.name, self.type, nullable=self.nullable, metadata={"doc": self.doc})


@dataclass(frozen=True)
class Schema:
    """The table that one stage writes.

    Attributes:
      stage: the command that writes it.
      version: increased whenever a column's name, type or meaning changes; part of every fingerprint.
      columns: the columns in file order.
      row_group: rows per Parquet row group. It is fixed so that the bytes do not depend on the chunks that the rows
        were committed in.
    """

    stage: str
    version: int
    columns: tuple[Column, ...]
    row_group: int

    @property
    def arrow(self) -> pa.Schema:
        """Return the Arrow schema; each field has its `doc`."""
        return pa.schema([column.field for column in self.columns])

    @property
    def names(self) -> tuple[str, ...]:
        """Return the column names in order."""
        return tuple(column.name for column in self.columns)

    @property
    def numbers(self) -> tuple[str, ...]:
        """Return the names of the columns that hold one real number per row."""
        return tuple(column.name for column in self.columns if pa.types.is_floating(column.type))

    def select(self, names: Iterable[str]) -> tuple[Column, ...]:
        """Return the named columns, in the order of `names`.

        Raises:
          KeyError: the schema has no column of that name.
        """
        by_name = {column.name: column for column in self.columns}
        return tuple(by_name[name] for name in names)

    def conform(self, table: pa.Table) -> pa.Table:
        """Return a table in this schema's column order and types, ready to be written.

        Raises:
          ValueError: columns are missing or unknown, a type does not cast, or a column that is not nullable has a null.
        """
        if sorted(table.column_names) != sorted(self.names):
            raise ValueError(f"spo {self.stage} writes the columns {self.names}; got {tuple(table.column_names)}")
        for column in self.columns:
            if not column.nullable and table[column.name].null_count:
                raise ValueError(f"column {column.name} must not contain a null")
        return table.select(self.names).cast(self.arrow)


_TEXT, _INTS, _NUMBERS = pa.string(), pa.list_(pa.int32()), pa.list_(pa.float32())
_FINISH = "why sampling ended: stop (end-of-text token or stop string), length (token limit)"

_QUESTION_ID = Column("question_id", _TEXT, "stable id of the question", missing="derive")
_PROMPT = Column("prompt", _TEXT, "text of the prompt (null: the file came with token ids only)", True, "null")
_PROMPT_IDS = Column("prompt_token_ids", _INTS, "token ids of the prompt, exactly as the model received them")
_TOKEN_IDS = Column("token_ids", _INTS, "sampled token ids, including the end-of-text token")
_TOKEN_LOGPROBS = Column(
    "logprobs",
    _NUMBERS,
    "natural log-probability of each sampled token under the temperature-scaled, full-vocabulary distribution",
)
_RESPONSE_TEXT = Column("text", _TEXT, "token_ids decoded without special tokens; for reading only", True, "null")
_ANSWER = Column("answer", _TEXT, "answer extracted from the text (null: none found)", True, "null")
_REFERENCE = Column("reference", _TEXT, "reference answer that the verifier compares with")

TRAJECTORIES = Schema(
    stage="rollout",
    version=2,
    row_group=4096,
    columns=(
        Column("trajectory_id", _TEXT, "<question_id>/<sample>; in a tree <question_id>/2.0.5", missing="derive"),
        Column("parent_id", _TEXT, "trajectory_id of the parent node (null: the parent is the prompt)", True, "null"),
        _QUESTION_ID,
        Column("depth", pa.int32(), "number of nodes between this one and the prompt", missing="derive"),
        _PROMPT,
        _PROMPT_IDS,
        _TOKEN_IDS,
        _TOKEN_LOGPROBS,
        _RESPONSE_TEXT,
        Column(
            "finish_reason",
            _TEXT,
            _FINISH + ", segment (inner node; its children continue it)",
            missing="derive",
        ),
        _ANSWER,
        _REFERENCE,
        Column(
            "reward",
            pa.float32(),
            "reward from the verifier (null: the response could not be graded, or inner node, finish_reason segment)",
            True,
        ),
    ),
)

_OPTIONAL = {
    "token_texts": Column(
        "token_texts", pa.list_(_TEXT), "text of each token (only with --token-texts); joined, the response"
    ),
    "staleness": Column(
        "staleness",
        pa.int32(),
        "iterations of training between the model that sampled and the one that learns (only with --staleness)",
    ),
}


def trajectories_with(*names: str) -> Schema:
    """Return `TRAJECTORIES` with further columns, for those who read the table; no stage reads them.

    Args:
      names: of `token_texts` and `staleness`.
    """
    return dataclasses.replace(TRAJECTORIES, columns=(*TRAJECTORIES.columns, *(_OPTIONAL[name] for name in names)))


_SEGMENT_COLUMNS = (
    Column("trajectory_id", _TEXT, "trajectory that the segment belongs to"),
    Column("segment_index", pa.int32(), "number of the segment within its trajectory, from 0"),
    Column("start", pa.int32(), "offset in token_ids of its first token"),
    Column("end", pa.int32(), "offset in token_ids after its last token"),
    Column("cutpoints", _INTS, "offsets in token_ids of tokens with probability below rho (probability mask)"),
)

CUTPOINTS = Schema(stage="segment", version=2, row_group=65536, columns=_SEGMENT_COLUMNS)

ADVANTAGES = Schema(
    stage="estimate",
    version=3,
    row_group=65536,
    columns=(
        *_SEGMENT_COLUMNS,
        Column(
            "value_start",
            pa.float64(),
            "V at the segment's start: expected final reward; an estimate, also at the prompt, where start is 0",
        ),
        Column("value_end", pa.float64(), "V at the segment's end; for the last segment, the trajectory's reward"),
        Column("advantage", pa.float64(), "value_end - value_start; some estimators scale it or add a term"),
        Column("num_rollouts", pa.int32(), "number of rewards that value_start is estimated from (0: none)"),
        Column("rewards", _NUMBERS, "rewards that value_start is estimated from: of rollouts, leaves or responses"),
        Column(
            "value_std",
            pa.float64(),
            "sample standard deviation (n - 1) of the values averaged in value_start",
            True,
            "null",
        ),
    ),
)

ROLLOUTS = Schema(
    stage="estimate --keep-rollouts",
    version=1,
    row_group=4096,
    columns=(
        Column("rollout_id", _TEXT, "<state_id>/<sample>"),
        Column("state_id", _TEXT, "where the rollout starts: <trajectory_id>:<start>, of the first trajectory"),
        _QUESTION_ID,
        Column("trajectory_ids", pa.list_(_TEXT), "trajectories that pass through the state, in order"),
        Column("start", pa.int32(), "number of tokens of these trajectories before the state, the same in all of them"),
        Column("sample", pa.int32(), "number of the rollout among those from its state, from 0"),
        _TOKEN_IDS,
        _TOKEN_LOGPROBS,
        Column("cutpoints", _INTS, "offsets in token_ids of tokens with probability below rho (probability mask)"),
        Column("text", _TEXT, "token_ids decoded without special tokens, without the tokens before the state"),
        Column("finish_reason", _TEXT, _FINISH),
        _ANSWER,
        Column("reward", pa.float32(), "reward of the whole response (null: it could not be graded)", True),
        Column("value_start", pa.float64(), "mean reward of the other rollouts from the state (null: none)", True),
        Column("advantage", pa.float64(), "reward - value_start (null: one of them is null)", True),
    ),
)

EVALUATION = Schema(
    stage="eval",
    version=2,
    row_group=4096,
    columns=(
        Column("response_id", _TEXT, "<question_id>/<sample>; one row per token budget"),
        Column("task", _TEXT, "name of the task that the question belongs to", True, "null"),
        _QUESTION_ID,
        Column("subject", _TEXT, "subject of the question (null: the task has none)", True, "null"),
        Column("level", _TEXT, "difficulty of the question (null: the task has none)", True, "null"),
        Column("sample", pa.int32(), "number of the response among the responses to its question, from 0"),
        Column(
            "max_tokens", pa.int32(), "token budget: the response is truncated after this many tokens", True, "null"
        ),
        _PROMPT,
        _PROMPT_IDS,
        _TOKEN_IDS,
        _TOKEN_LOGPROBS,
        _RESPONSE_TEXT,
        Column("finish_reason", _TEXT, _FINISH, missing="derive"),
        _ANSWER,
        _REFERENCE,
        Column("reward", pa.float32(), "reward from the verifier (null: the response could not be graded)", True),
    ),
)

_FLOAT = pa.float32()

TOKEN_METRICS = Schema(
    stage="train --token-metrics",
    version=1,
    row_group=65536,
    columns=(
        Column("step", pa.int32(), "optimizer step of the call, from 1, as in metrics.jsonl"),
        Column("trajectory_id", _TEXT, "trajectory or node of the token; with --train-rollouts also a rollout_id"),
        Column("age", pa.int32(), "iterations since it was sampled (0: the current one; more only with --replay)"),
        Column("position", pa.int32(), "offset of the token in token_ids of that row"),
        Column("token_id", pa.int32(), "the token"),
        Column("old_logprob", _FLOAT, "log-probability under the old policy, which the ratio divides by"),
        Column("new_logprob", _FLOAT, "log-probability under the trained policy, before the update of the step"),
        Column("sampler_logprob", _FLOAT, "log-probability that the sampler recorded (null: none)", True, "null"),
        Column("entropy", _FLOAT, "entropy of the trained policy's distribution, in nats, before the update"),
        Column(
            "ratio",
            _FLOAT,
            "exp(new_logprob - old_logprob), limited to exp(±10); with gspo and segment-ratio, that of the sequence or "
            "segment",
        ),
        Column("clipped", pa.bool_(), "whether the loss bounds the token (distill: the weight of its segment)"),
        Column("advantage", pa.float64(), "advantage that the loss multiplies: after whitening"),
    ),
)

BY_STAGE: dict[str, Schema] = {
    schema.stage: schema for schema in (TRAJECTORIES, CUTPOINTS, ADVANTAGES, ROLLOUTS, TOKEN_METRICS, EVALUATION)
}

ARTEFACT: dict[str, str] = {
    "rollout": "trajectories",
    "segment": "cutpoints",
    "estimate": "advantages",
    "estimate --keep-rollouts": "rollouts",
    "train --token-metrics": "token metrics",
    "eval": "evaluation responses",
}
"""Stage → name of the table that it writes, for messages."""

READER: dict[str, str] = {
    "rollout": "segment",
    "segment": "estimate",
    "estimate": "train",
    "estimate --keep-rollouts": "train --train-rollouts",
    "train --token-metrics": "report",
    "eval": "show",
}
"""Stage → command that reads its table, for messages."""


def recognize(columns: Iterable[str]) -> Schema | None:
    """Return the schema of a file without lineage, recognized by a distinctive column; None if none is found."""
    names = set(columns)
    # The order matters: the first two also have `advantage`, advantages `cutpoints`, and evaluations `token_ids`.
    distinctive = {
        "rollout_id": ROLLOUTS,
        "new_logprob": TOKEN_METRICS,
        "advantage": ADVANTAGES,
        "cutpoints": CUTPOINTS,
        "response_id": EVALUATION,
        "token_ids": TRAJECTORIES,
    }
    return next((schema for name, schema in distinctive.items() if name in names), None)
