"""Read Parquet that another tool wrote: the right columns, no lineage.

Columns are cast to the types of the schema, missing ones are derived where possible, and values are checked. Errors
name the column, the file and the row.
"""

# pyarrow.compute creates its functions at import time, which the type checker cannot see.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.core.errors import UserError
from stages.core.paths import AnyPath
from stages.shards.schemas import ARTEFACT, Column, Schema
from stages.shards.tables import null_row

_DERIVED_FROM = {
    "question_id": ("prompt_token_ids", "prompt"),
    "trajectory_id": ("question_id", "prompt_token_ids", "prompt"),
}
"""Missing column → columns that it can be derived from, in order of preference. One of them is enough."""

_FINISH_REASONS = pa.array(["stop", "length", "segment"])
_ROUNDING = 1e-3
"""Tolerance for log-probabilities above 0: engines of low precision return slightly positive ones."""

KEYS = {
    "rollout": ("trajectory_id",),
    "segment": ("trajectory_id", "segment_index"),
    "estimate": ("trajectory_id", "segment_index"),
    "estimate --keep-rollouts": ("rollout_id",),
    "train --token-metrics": ("step", "trajectory_id", "age", "position"),
    "eval": ("response_id", "max_tokens"),
}
"""Stage → columns that identify a row of its table."""


def columns_to_read(schema: Schema, names: Sequence[str], found: Sequence[str], path: AnyPath) -> list[str]:
    """Return the columns to read from a file so that `conform_foreign` can return the columns `names`.

    Args:
      names: the columns that the caller needs.
      found: the columns of the file.

    Raises:
      UserError: columns are missing and cannot be derived.
    """
    required: list[str] = []
    missing: list[str] = []
    for column in schema.select(names):
        sources = [name for name in _DERIVED_FROM.get(column.name, ()) if name in found][:1]
        if column.name in found:
            required.append(column.name)
        elif column.name in _DERIVED_FROM and column.missing == "derive" and sources:
            required += sources
        elif column.missing == "refuse" or column.name in _DERIVED_FROM:
            missing.append(column.name)
    if missing:
        raise UserError(
            f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)} of {ARTEFACT[schema.stage]} "
            f"(found: {', '.join(found) or 'none'}). Rename or add them; `spo show --schema` describes every column"
        )
    return list(dict.fromkeys(required))


def conform_foreign(table: pa.Table, schema: Schema, names: Sequence[str], first_row: int, path: AnyPath) -> pa.Table:
    """Return the columns `names` in the types of the schema: cast, checked, and derived where the file lacks them.

    Args:
      table: the columns that `columns_to_read` returned.
      first_row: number of rows in the preceding files; derived ids continue from it.

    Raises:
      UserError: a type does not cast, a column that is not nullable has a null, token_ids and logprobs differ in
        length, or a number cannot be a token id or a log-probability. The message names column, file and row (from 0).
    """
    given = {column.name: _cast(table[column.name], column, path) for column in schema.select(table.column_names)}
    for name in names:
        if name not in given:
            given[name] = _derive(name, given, table.num_rows, first_row, path)
    if "finish_reason" in given:
        given["finish_reason"] = pc.fill_null(given["finish_reason"], "stop")
    columns = schema.select(names)
    for column in columns:
        if not column.nullable:
            _refuse(null_row(given[column.name]), f"column {column.name} contains a null", path)
    _check_values({name: given[name] for name in names}, given.get("finish_reason"), schema, path)
    result = [given[column.name].cast(column.type) for column in columns]
    return pa.table(result, schema=pa.schema([column.field for column in columns]))


def check_unique(schema: Schema, keys: Sequence[tuple[AnyPath, pa.Table]]) -> None:
    """Check that no two rows have the same id, within a file or across the files of one artefact.

    Args:
      keys: for each file, its path and its key columns (`KEYS`).

    Raises:
      UserError: an id occurs twice; the message names it and both rows.
    """
    names, columns = KEYS[schema.stage], schema.select(KEYS[schema.stage])
    keys = [(path, pa.table({c.name: _cast(table[c.name], c, path) for c in columns})) for path, table in keys]
    rows = pa.concat_tables([table for _, table in keys])
    counts = rows.group_by(list(names)).aggregate([([], "count_all")])
    repeated = counts.filter(pc.greater(counts["count_all"], 1))
    if not repeated.num_rows:
        return
    first = tuple(repeated[name][0].as_py() for name in names)
    places = [
        f"row {row} of {path}"
        for path, table in keys
        for row, values in enumerate(zip(*(table[name].to_pylist() for name in names), strict=True))
        if values == first
    ]
    raise UserError(f"{', '.join(names)} must be unique, but {first} is in {places[0]} and in {places[1]}: rename one")


def check_finite(table: pa.Table, schema: Schema, path: AnyPath) -> None:
    """Check that every real number is finite.

    Raises:
      UserError: a NaN or an infinity; the message names column, file and row (from 0).
    """
    for column in schema.select(table.column_names):
        finite = pc.is_finite(_cast(table[column.name], column, path))
        _refuse(_first(pc.invert(pc.fill_null(finite, True))), f"{column.name} must be a finite number", path)


def _cast(values: pa.ChunkedArray, column: Column, path: AnyPath) -> pa.ChunkedArray:
    try:
        return values.cast(column.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise UserError(
            f"column {column.name} of {path} must be {column.type}, found {values.type}: {error}"
        ) from error


def _derive(name: str, given: dict[str, pa.ChunkedArray], rows: int, first_row: int, path: AnyPath) -> pa.ChunkedArray:
    """Return a column of `rows` rows that the file lacks."""
    if name == "depth":
        return pa.chunked_array([np.zeros(rows, np.int32)])
    if name == "finish_reason":
        ended = pa.chunked_array([pa.repeat("stop", rows)])
        if not {"trajectory_id", "parent_id"} <= given.keys():
            return ended
        parents = given["parent_id"].drop_null().combine_chunks().cast(pa.string())
        return pc.if_else(pc.is_in(given["trajectory_id"], value_set=parents), "segment", ended)
    if name not in _DERIVED_FROM:
        return pa.chunked_array([pa.nulls(rows)])
    questions = given.get("question_id") or _question_ids(given, path)
    if name == "question_id":
        return questions
    numbers = pa.array(np.arange(first_row, first_row + rows)).cast(pa.string())
    return pc.binary_join_element_wise(questions, numbers, "/")


def _question_ids(given: dict[str, pa.ChunkedArray], path: AnyPath) -> pa.ChunkedArray:
    """Return question ids: "q" and 12 hexadecimal digits of a hash of the prompt's token ids, or else of its text."""
    name = "prompt_token_ids" if "prompt_token_ids" in given else "prompt"
    _refuse(null_row(given[name]), f"column {name}, which question_id is derived from, contains a null", path)
    encoded = [
        value.encode() if isinstance(value, str) else np.array(value, "<i4").tobytes()
        for value in given[name].to_pylist()
    ]
    ids = ["q" + hashlib.blake2b(content, digest_size=6).hexdigest() for content in encoded]
    return pa.chunked_array([pa.array(ids, pa.string())])


def _check_values(
    given: dict[str, pa.ChunkedArray], finish_reason: pa.ChunkedArray | None, schema: Schema, path: AnyPath
) -> None:
    """Raise UserError for values of the right type that cannot be correct."""
    if finish_reason is not None:
        unknown = pc.invert(pc.is_in(finish_reason, value_set=_FINISH_REASONS))
        _refuse(_first(unknown), f"finish_reason must be one of {', '.join(_FINISH_REASONS.to_pylist())}", path)
    if "token_ids" in given and "logprobs" in given:
        lengths = [pc.list_value_length(given[name]) for name in ("token_ids", "logprobs")]
        _refuse(_first(pc.not_equal(*lengths)), "token_ids and logprobs differ in length", path)
    for name in ("token_ids", "prompt_token_ids"):
        if name in given:
            negative = pc.less(pc.list_flatten(given[name]), 0)
            _refuse(_first_list(given[name], negative), f"{name} contains a negative id", path)
    if "logprobs" in given:
        flat = pc.list_flatten(given["logprobs"])
        valid = pc.and_(pc.is_finite(flat), pc.less_equal(flat, _ROUNDING))
        problem = "logprobs must be finite natural logs, at most 0; found another value"
        _refuse(_first_list(given["logprobs"], pc.invert(valid)), problem, path)


def _refuse(row: int | None, problem: str, path: AnyPath) -> None:
    """Raise UserError if there is an offending row."""
    if row is not None:
        raise UserError(f"{problem}: row {row} (counted from 0) of {path}")


def _first(mask: pa.ChunkedArray | pa.Array) -> int | None:
    """Return the index of the first true value; None if there is none."""
    index = pc.index(mask, True).as_py()
    return None if index < 0 else index


def _first_list(column: pa.ChunkedArray, mask: pa.ChunkedArray | pa.Array) -> int | None:
    """Return the row of a list column that holds the first true value of a mask over the flattened values."""
    index = _first(mask)
    return None if index is None else pc.list_parent_indices(column)[index].as_py()
