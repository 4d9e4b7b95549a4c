"""Select trajectories of an artefact by conditions on their columns, and list them, one line each."""

# pyarrow.compute defines its functions at import, so the type checker does not know them.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.table import Table
from rich.text import Text

from spo_cli.trajectory import printable
from stages.core.errors import UserError, did_you_mean
from stages.core.paths import AnyPath
from stages.core.storage import digest
from stages.shards.foreign import KEYS
from stages.shards.origin import trace_back
from stages.shards.parts import Artefact
from stages.shards.schemas import ADVANTAGES, CUTPOINTS, TOKEN_METRICS, TRAJECTORIES

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "!=": pc.not_equal,
    "<=": pc.less_equal,
    ">=": pc.greater_equal,
    "=": pc.equal,
    "<": pc.less,
    ">": pc.greater,
    "~": pc.match_substring,
}
_CONDITION = re.compile(r"\s*(\w+)\s*(!=|<=|>=|=|<|>|~)(.*)", re.DOTALL)
_LENGTH = "tokens"
"""Name of the number of tokens, which is no column of the table."""
_SHOWN = ("reward", _LENGTH, "finish_reason", "answer", "text")


@dataclass(frozen=True)
class Condition:
    """One condition of `--where`: rows whose column is so compare with the value. A null fulfils none."""

    column: str
    sign: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read `reward<1`.

        Raises:
          UserError: the text is no condition.
        """
        match = _CONDITION.fullmatch(text)
        if not match:
            raise UserError(f"--where: expected a column, one of {' '.join(_OPERATORS)} and a value; got {text!r}")
        return cls(match[1], match[2], match[3].strip())

    def holds(self, table: pa.Table) -> pa.ChunkedArray:
        """Return a boolean per row.

        Raises:
          UserError: the column does not compare with the value in this way.
        """
        column = table[self.column]
        try:
            if self.sign == "~":
                return pc.match_substring(column, self.value)
            value = pa.scalar(self.value).cast(pa.float64() if pa.types.is_floating(column.type) else column.type)
            return _OPERATORS[self.sign](column, value)
        except pa.ArrowException as error:
            raise UserError(
                f"--where {self.column}{self.sign}{self.value}: the column {self.column} ({column.type}) does not "
                "compare with this value"
            ) from error


def select(
    artefact: Artefact, where: Sequence[str], question: str | None, sample: int | None, trajectories: AnyPath | None
) -> pa.Table:
    """Return id, reward, tokens, finish reason, answer and text of the responses that fulfil all conditions.

    Conditions on the columns of segments hold for a response if one of its segments fulfils all of them.

    Args:
      where: conditions, as `Condition.parse` reads them.
      question: id of a question; None: all.
      sample: return this many of them, chosen by a hash of their id; None: all.
      trajectories: trajectories of cutpoints or advantages. Default: the path in the lineage.

    Raises:
      UserError: a condition is wrong or names no column, or the trajectories cannot be found.
    """
    if artefact.schema is TOKEN_METRICS:
        raise UserError(f"{artefact.path} holds single tokens, not responses: read them with pandas")
    conditions = [Condition.parse(text) for text in where]
    of_segments = artefact.schema in (CUTPOINTS, ADVANTAGES)
    responses = trace_back(artefact, TRAJECTORIES, trajectories) if of_segments else artefact
    key = KEYS[responses.schema.stage][0]
    if question is not None:
        conditions.append(Condition("question_id", "=", question))
    segment_columns = set(artefact.schema.names) - {key} if of_segments else set()
    columns = _comparable(responses)
    if unknown := [one.column for one in conditions if one.column not in {*columns, *segment_columns}]:
        known = sorted({*columns, *segment_columns})
        raise UserError(
            f"--where: {artefact.path} has no column {unknown[0]!r}.{did_you_mean(unknown[0], known)} "
            f"It has {', '.join(known)}"
        )
    of_rows = [one for one in conditions if one.column not in segment_columns]
    found = _filter(_read(responses, [key, *_SHOWN, *(one.column for one in of_rows)]), of_rows)
    if inner := [one for one in conditions if one.column in segment_columns]:
        segments = _filter(artefact.read_all([key, *dict.fromkeys(one.column for one in inner)]), inner)
        found = found.filter(pc.is_in(found[key], value_set=pc.unique(segments[key])))
    if sample is not None:
        order = sorted(pc.unique(found[key]).to_pylist(), key=lambda name: digest(name.encode()))
        found = found.filter(pc.is_in(found[key], value_set=pa.array(order[:sample], pa.string())))
    return found.rename_columns(["id", *found.column_names[1:]]).select(["id", *_SHOWN])


def draw_list(found: pa.Table, width: int) -> Table:
    """Return one line per response, in which only its text is cut where the line ends.

    Args:
      width: columns of the screen.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", width=width)
    for name in ("id", "reward", _LENGTH, "finish", "answer"):
        table.add_column(name, justify="right" if name in ("reward", _LENGTH) else "left", no_wrap=name != "id")
        table.columns[-1].overflow = "fold"
    table.add_column("text", no_wrap=True, overflow="ellipsis", ratio=1)
    for row in found.to_pylist():
        reward = "" if row["reward"] is None else f"{row['reward']:g}"
        values = (row["id"], reward, f"{row[_LENGTH]:,}", row["finish_reason"], _short(row["answer"]), row["text"])
        table.add_row(*(Text(printable(value or "")) for value in values))
    return table


def _comparable(artefact: Artefact) -> list[str]:
    """Return the columns of responses that a condition may name: those with one value per row."""
    single = [column.name for column in artefact.schema.columns if not pa.types.is_nested(column.type)]
    return [*(name for name in single if _has(artefact, name)), _LENGTH]


def _has(artefact: Artefact, name: str) -> bool:
    """Return whether a column can be read; the reward and the reference of foreign rows may be missing."""
    return name not in ("reward", "reference") or all(name in part.columns for part in artefact.parts)


def _read(artefact: Artefact, names: Sequence[str]) -> pa.Table:
    """Return columns by name, with the number of tokens in place of `_LENGTH`, and nulls for a missing reward."""
    columns = [name for name in dict.fromkeys(names) if name != _LENGTH and _has(artefact, name)]
    table = artefact.read_all([*columns, "token_ids"])
    table = table.append_column(_LENGTH, pc.list_value_length(table["token_ids"])).drop_columns(["token_ids"])
    if "reward" not in columns:
        table = table.append_column("reward", pa.nulls(table.num_rows, pa.float32()))
    return table


def _filter(table: pa.Table, conditions: Sequence[Condition]) -> pa.Table:
    return table.filter(reduce(pc.and_, [one.holds(table) for one in conditions])) if conditions else table


def _short(answer: str | None, most: int = 12) -> str | None:
    return answer if not answer or len(answer) <= most else f"{answer[: most - 1]}…"
