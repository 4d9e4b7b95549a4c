"""A small run written by the real writers: a byte-level model, trajectories in two parts, cutpoints, advantages.

It has two questions with two responses each, with values computed by hand. A token is a byte; 256 is the end token.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.core.config import option
from stages.models import checkpoints
from stages.models.presets import make_byte_tokenizer
from stages.shards.lineage import Source, describe, model_source, write_lineage
from stages.shards.parts import artefact_source, open_artefact
from stages.shards.schemas import ADVANTAGES, CUTPOINTS, TRAJECTORIES, Schema
from stages.shards.writing import open_part

END = 256


@dataclass(frozen=True, kw_only=True)
class Options:
    """A stand-in for the Config of a stage."""

    temperature: float = option("", default=0.7)
    seed: int = option("", default=3)


def response(question: str, sample: int, text: str, unlikely: tuple[int, ...], reward: float) -> dict[str, Any]:
    """Return a trajectories row; the tokens at `unlikely` have probability 0.5, the others 0.99."""
    prompt, ids = f"ask {question}: ", [*text.encode(), END]
    return {
        "trajectory_id": f"{question}/{sample}",
        "parent_id": None,
        "question_id": question,
        "depth": 0,
        "prompt": prompt,
        "prompt_token_ids": list(prompt.encode()),
        "token_ids": ids,
        "logprobs": [float(np.log(0.5 if offset in unlikely else 0.99)) for offset in range(len(ids))],
        "text": text,
        "finish_reason": "stop",
        "answer": text[-1],
        "reference": "5",
        "reward": reward,
    }


# q0: rewards 1 and 0. q1: rewards 0 and 0. Lengths with the end token: 6, 6, 4, 4.
RESPONSES = [
    response("q0", 0, "2+3=5", (0, 3), 1.0),
    response("q0", 1, "2+3=6", (0, 4), 0.0),
    response("q1", 0, "x\n3", (), 0.0),
    response("q1", 1, "é3", (2,), 0.0),
]


def segment(trajectory: str, number: int, start: int, end: int, cutpoints: list[int], *values: Any) -> dict[str, Any]:
    """Return a cutpoints row, or, with values (start, end, rewards), an advantages row."""
    row: dict[str, Any] = {"trajectory_id": trajectory, "segment_index": number, "start": start, "end": end}
    row["cutpoints"] = cutpoints
    if values:
        value_start, value_end, rewards = values
        std = float(np.std(rewards, ddof=1)) if len(rewards) > 1 else None
        row |= {"value_start": value_start, "value_end": value_end, "advantage": value_end - value_start}
        row |= {"num_rollouts": len(rewards), "rewards": rewards, "value_std": std}
    return row


SEGMENTS = [
    segment("q0/0", 0, 0, 3, [0], 0.5, 0.75, [1, 0, 1, 0]),
    segment("q0/0", 1, 3, 6, [3], 0.75, 1.0, [1, 1, 0, 1]),
    segment("q0/1", 0, 0, 4, [0], 0.5, 0.75, [1, 0, 1, 0]),
    segment("q0/1", 1, 4, 6, [4], 0.75, 0.0, [1, 1, 1, 0]),
    segment("q1/0", 0, 0, 4, [], 0.0, 0.0, []),
    segment("q1/1", 0, 0, 2, [], 0.0, 0.0, []),
    segment("q1/1", 1, 2, 4, [2], 0.0, 0.0, [0, 0, 0, 0]),
]


def write(
    directory: Path, schema: Schema, rows: list[list[dict[str, Any]]], options: Options = Options(), **lineage: Any
) -> Path:
    """Write an artefact with one part for each list of rows."""
    for index, part_rows in enumerate(rows):
        metadata = describe(schema.stage, schema, options, **lineage)
        with open_part(directory, index, len(rows), metadata, schema) as part:
            table = pa.Table.from_pylist(
                [{name: row[name] for name in schema.names} for row in part_rows], schema.arrow
            )
            part.write(table)
    return directory


def make_run(folder: Path) -> Path:
    """Write `runs/demo` with iteration 000 into the folder, and return the folder."""
    run = folder / "runs" / "demo"
    model = run / "start"
    model.mkdir(parents=True)
    make_byte_tokenizer().save_pretrained(model)
    config = {"architectures": ["Qwen2ForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 258}
    (model / "config.json").write_text(json.dumps(config))
    write_lineage(model, describe("sft", None, Options(), (Source("arithmetic", "7a5c" * 8, "task"),)))
    iteration = run / "000"
    trajectories = write(
        iteration / "trajectories",
        TRAJECTORIES,
        [RESPONSES[:2], RESPONSES[2:]],
        model=model_source(model, checkpoints.digest(model), iteration / "trajectories"),
        inputs=(Source("arithmetic", "7a5c" * 8, "task"),),
    )
    cutpoints = write(
        iteration / "cutpoints", CUTPOINTS, [SEGMENTS],
        inputs=(artefact_source(open_artefact(trajectories), iteration / "cutpoints"),),
    )  # fmt: skip
    write(
        iteration / "advantages", ADVANTAGES, [SEGMENTS],
        inputs=(artefact_source(open_artefact(cutpoints), iteration / "advantages"),
                artefact_source(open_artefact(trajectories), iteration / "advantages")),
        model=model_source(model, checkpoints.digest(model), iteration / "advantages"),
    )  # fmt: skip
    return folder
