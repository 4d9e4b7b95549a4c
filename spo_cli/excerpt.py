"""Out of an artefact, the one trajectory to draw: picked, joined with its segments, its tokens turned into text."""

# pyarrow.compute makes its functions when it is imported, out of the type checker's sight.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from spo_cli.trajectory import Segment, Trajectory, readable_tokens, unlikely_tokens
from stages.engines import checkpoints
from stages.engines.token_texts import Decode, decoder
from stages.errors import UserError
from stages.shards.foreign import KEYS
from stages.shards.parts import Artefact, follow
from stages.shards.schemas import TRAJECTORIES

_SEGMENT_COLUMNS = {
    "segment": ("segment", "start", "end", "cutpoints"),
    "estimate": ("segment", "start", "end", "cutpoints", "value_start", "value_end", "advantage", "rollouts"),
}
_RESPONSE_COLUMNS = ("prompt", "prompt_token_ids", "token_ids", "logprobs", "text", "finish_reason", "answer")
_FACTS = ("reward", "answer", "reference", "finish_reason")


def excerpt(
    artefact: Artefact, identifier: str | None, row: int | None, trajectories: Path | None
) -> tuple[Trajectory, str]:
    """The trajectory to draw, and a line for the reader ("" if all is as it should be).

    Args:
      artefact: with at least one row.
      identifier, row: which one; both None picks one that has something to show.
      trajectories: where the trajectories of cutpoints or advantages are, if not where the lineage says.

    Raises:
      UserError: no such id or row, or the trajectories cannot be found.
    """
    stage = artefact.schema.stage
    key = KEYS[stage][0]
    keys = artefact.read_all([key])[key]
    chosen = _chosen(keys, identifier, row, artefact.path) or _telling(artefact, keys)
    responses = follow(artefact, TRAJECTORIES, trajectories) if stage in _SEGMENT_COLUMNS else artefact
    response = _response(responses, chosen)
    decode, note = _decoder(responses)
    tokens, guessed = readable_tokens(response["token_ids"], response["text"], decode)
    segments = _segments(artefact, chosen) if stage in _SEGMENT_COLUMNS else ()
    unlikely = frozenset() if segments else unlikely_tokens(response["logprobs"])
    facts = {name.replace("_", " "): _told(response[name]) for name in _FACTS if response.get(name) is not None}
    facts["tokens"] = str(len(tokens))
    prompt = response["prompt"] or (decode(response["prompt_token_ids"]) if decode else "")
    return Trajectory(chosen, facts, prompt, tokens, segments, unlikely), " ".join(filter(None, (note, guessed)))


def _chosen(keys: pa.ChunkedArray, identifier: str | None, row: int | None, path: Path) -> str | None:
    if identifier is not None:
        if pc.index(keys, identifier).as_py() < 0:
            raise UserError(f"{path} has no trajectory {identifier!r}; its ids look like {keys[0].as_py()!r}")
        return identifier
    if row is None:
        return None
    if row >= len(keys):
        raise UserError(f"--row {row}: {path} has {len(keys)} rows, the last is {len(keys) - 1}")
    return keys[row].as_py()


def _telling(artefact: Artefact, keys: pa.ChunkedArray) -> str:
    """The one with the largest advantage, with most segments, or of a question whose rewards are mixed."""
    stage = artefact.schema.stage
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


def _response(responses: Artefact, identifier: str) -> dict[str, Any]:
    """The row of this id, with the columns that its file has."""
    key = KEYS[responses.schema.stage][0]
    for part in responses.parts:
        row = pc.index(responses.read(part, [key])[key], identifier).as_py()
        if row >= 0:
            optional = [name for name in ("reference", "reward") if name in part.columns]
            return responses.read(part, [*_RESPONSE_COLUMNS, *optional]).slice(row, 1).to_pylist()[0]
    raise UserError(f"{responses.path} has no trajectory {identifier!r}")


def _segments(artefact: Artefact, identifier: str) -> tuple[Segment, ...]:
    names = _SEGMENT_COLUMNS[artefact.schema.stage]
    table = artefact.read_all(["trajectory_id", *names])
    rows = table.filter(pc.equal(table["trajectory_id"], identifier)).select(names).sort_by("segment").to_pylist()
    return tuple(Segment(**{**row, "cutpoints": tuple(row["cutpoints"])}) for row in rows)


def _decoder(responses: Artefact) -> tuple[Decode | None, str]:
    """How token ids become text: by the tokenizer of the model in the lineage, if it is on this machine."""
    lineage = responses.lineage
    if lineage is None or lineage.model is None:
        return None, ""
    directory = _model_directory(lineage.model.path, responses.directory)
    if directory is None:
        return None, f"the model {lineage.model.path} is not here."
    if (directory / "tokenizer.json").is_file():  # without the seconds that importing transformers takes
        from tokenizers import Tokenizer

        fast = Tokenizer.from_file(str(directory / "tokenizer.json"))
        return lambda ids: fast.decode(list(ids), skip_special_tokens=False), ""
    return decoder(checkpoints.load_tokenizer(directory)), ""


def _model_directory(path: str, base: Path) -> Path | None:
    """A local model, or what the hub's cache has of it; nothing is downloaded."""
    local = base.resolve() / path
    if local.is_dir():
        return local
    if path.startswith("."):
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(path, "config.json")
    return Path(cached).parent if isinstance(cached, str) else None


def _told(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
