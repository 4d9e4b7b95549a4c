"""Select one trajectory of an artefact to draw, join it with its segments, and decode its tokens.

In a tree, a trajectory is the path from the root to the selected node.
"""

# pyarrow.compute defines its functions at import, so the type checker does not know them.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import pyarrow.compute as pc

from spo_cli.trajectory import Segment, Trajectory, unlikely_tokens
from stages.core.errors import UserError
from stages.core.paths import AnyPath
from stages.reporting.tokens import find_decoder, readable_tokens
from stages.responses.trees import are_trees
from stages.shards.foreign import KEYS
from stages.shards.origin import trace_back
from stages.shards.parts import Artefact
from stages.shards.schemas import ROLLOUTS, TOKEN_METRICS, TRAJECTORIES

_SEGMENT_COLUMNS = {
    "segment": ("segment_index", "start", "end", "cutpoints"),
    "estimate": ("segment_index", "start", "end", "cutpoints", "value_start", "value_end", "advantage", "num_rollouts"),
}
_RESPONSE_COLUMNS = ("prompt", "prompt_token_ids", "token_ids", "logprobs", "text", "finish_reason", "answer")
_FACTS = ("reward", "answer", "reference", "finish_reason")


def excerpt(
    artefact: Artefact, identifier: str | None, row: int | None, trajectories: AnyPath | None
) -> tuple[Trajectory, str]:
    """Return the trajectory to draw, and notes to print ("" if there are none).

    Args:
      artefact: artefact with at least one row.
      identifier, row: id or row of the trajectory; if both are None, an informative one is selected.
      trajectories: trajectories of cutpoints or advantages. Default: the path in the lineage.

    Raises:
      UserError: no such id or row, or the trajectories cannot be found.
    """
    stage = artefact.schema.stage
    if artefact.schema is ROLLOUTS:
        raise UserError(f"{artefact.path} holds rollouts, which begin inside a response: read them with pandas")
    if artefact.schema is TOKEN_METRICS:
        raise UserError(f"{artefact.path} holds single tokens: read them with pandas, or color a report by ratio")
    responses = trace_back(artefact, TRAJECTORIES, trajectories) if stage in _SEGMENT_COLUMNS else artefact
    in_tree = stage != "eval" and are_trees(responses)
    selected = _find_id(artefact, responses, identifier, row)
    if selected is None:
        selected = _most_informative(artefact)
        selected = _leaf_below(responses, selected) if in_tree else selected
    path = _read_path(responses, selected)
    ids, logprobs = (list(chain.from_iterable(one[name] for one in path)) for name in ("token_ids", "logprobs"))
    decode, note = find_decoder(responses)
    tokens, guessed = readable_tokens(ids, "".join(one["text"] or "" for one in path), decode)
    last = path[-1]
    facts = {name.replace("_", " "): _fact_text(last[name]) for name in _FACTS if last.get(name) is not None}
    if last.get("reward") is None and last["finish_reason"] != "segment":
        facts = {"reward": "none, not gradable"} | facts
    facts["tokens"] = str(len(tokens))
    prompt = last["prompt"] or (decode(last["prompt_token_ids"]) if decode else "")
    segments = _segments(artefact, path, in_tree)
    if stage == "estimate" and all(segment.advantage is None for segment in segments):
        note += "None of its segments is here: they have no advantage and were omitted, or they are in another part."
    unlikely = None if stage in _SEGMENT_COLUMNS else unlikely_tokens(logprobs)
    return Trajectory(selected, facts, prompt, tokens, segments, unlikely), " ".join(filter(None, (note, guessed)))


def _find_id(artefact: Artefact, responses: Artefact, identifier: str | None, row: int | None) -> str | None:
    """Return the requested id, or None if none is requested. A response without written segments can still be drawn."""
    key = KEYS[artefact.schema.stage][0]
    if identifier is not None:
        known = responses if artefact.schema.stage == "estimate" else artefact
        keys = known.read_all([key])[key]
        if pc.index(keys, identifier).as_py() < 0:
            raise UserError(f"{artefact.path} has no trajectory {identifier!r}; its ids look like {keys[0].as_py()!r}")
        return identifier
    if row is None:
        return None
    if row >= artefact.rows:
        raise UserError(f"--row {row}: {artefact.path} has {artefact.rows} rows, the last is {artefact.rows - 1}")
    return artefact.read_all([key])[key][row].as_py()


def _most_informative(artefact: Artefact) -> str:
    """Return the id with the largest advantage, the most segments, or of a question with both rewards."""
    stage = artefact.schema.stage
    keys = artefact.read_all(KEYS[stage][:1])[KEYS[stage][0]]
    if stage == "estimate":
        advantage = np.abs(artefact.read_all(["advantage"])["advantage"].to_numpy())
        return keys[int(advantage.argmax())].as_py()
    if stage == "segment":
        counts = keys.value_counts()
        return counts[int(np.argmax(counts.field("counts").to_numpy()))]["values"].as_py()
    table = artefact.read_all(["question_id", "reward"])
    groups = table.group_by("question_id").aggregate([("reward", "min"), ("reward", "max")])
    mixed = groups.filter(pc.less(groups["reward_min"], groups["reward_max"]))["question_id"]
    row = pc.index(table["question_id"], mixed[0].as_py()).as_py() if len(mixed) else 0
    return keys[row].as_py()


def _leaf_below(responses: Artefact, identifier: str) -> str:
    """Return the first leaf below a node, or the node itself."""
    table = responses.read_all(["trajectory_id", "parent_id"])
    for _ in range(table.num_rows):
        child = pc.index(table["parent_id"], identifier).as_py()
        if child < 0:
            break
        identifier = table["trajectory_id"][child].as_py()
    return identifier


def _read_path(responses: Artefact, identifier: str) -> list[dict[str, Any]]:
    """Return the rows from the root to the row with this id, with the columns that the file has.

    A response of an evaluation has one row per budget; the last row, of the largest budget, is returned.
    """
    key = KEYS[responses.schema.stage][0]
    parents = ["parent_id"] if "parent_id" in responses.schema.names else []
    for part in responses.parts:
        keys = responses.read(part, [key])[key]
        rows = pc.indices_nonzero(pc.equal(keys, identifier))
        if not len(rows):
            continue
        row = rows[-1].as_py()
        optional = [name for name in ("reference", "reward") if name in part.columns]
        table = responses.read(part, [*_RESPONSE_COLUMNS, *parents, *optional])
        found: list[dict[str, Any]] = []
        while row >= 0 and len(found) < table.num_rows:
            found.append({**table.slice(row, 1).to_pylist()[0], "trajectory_id": keys[row].as_py()})
            parent = found[-1].get("parent_id")
            row = pc.index(keys, parent).as_py() if parent else -1
        return found[::-1]
    raise UserError(f"{responses.path} has no trajectory {identifier!r}")


def _segments(artefact: Artefact, path: list[dict[str, Any]], in_tree: bool) -> tuple[Segment, ...]:
    """Return the segments of a path in order; for trajectories, the nodes of a tree."""
    names = _SEGMENT_COLUMNS.get(artefact.schema.stage)
    if names is None and not in_tree:
        return ()
    table = artefact.read_all(["trajectory_id", *names]) if names else None
    segments: list[Segment] = []
    before = 0
    for node in path:
        name, length = node["trajectory_id"], len(node["token_ids"])
        rows = []
        if table is not None and names is not None:
            rows = (
                table.filter(pc.equal(table["trajectory_id"], name)).select(names).sort_by("segment_index").to_pylist()
            )
        segments += _placed(rows, before, length, name.rpartition("/")[2] if in_tree else None)
        before += length
    return tuple(segments)


def _placed(rows: list[dict[str, Any]], before: int, length: int, branch: str | None) -> Iterator[Segment]:
    """Yield the segments of a node of `length` tokens, `before` tokens after the prompt, and one for each gap."""
    position = 0
    for row in [*rows, None]:
        start = length if row is None else row["start"]
        if position < start:
            yield Segment(branch or "", before + position, before + start, ())
        if row is not None:
            offsets = {
                "segment_index": branch or row["segment_index"],
                "start": before + start,
                "end": before + row["end"],
            }
            yield Segment(**{**row, **offsets, "cutpoints": tuple(before + offset for offset in row["cutpoints"])})
            position = row["end"]


def _fact_text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
