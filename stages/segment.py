"""`spo segment`: cut every trajectory into segments → cutpoints/.

One row per segment, with the offsets of its cutpoints: the tokens of probability below ρ, the probability mask. The
stretches of a tree are its segments: they were made while sampling.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from stages.configs.segment import Config
from stages.core.errors import UserError
from stages.core.progress import Progress, Silent, Summary
from stages.core.user_function import load_function
from stages.maths import partition as cuts
from stages.maths.branches import branch_starts
from stages.maths.partition import Segments, find_cutpoints, partition_at_boundaries, segment_cutpoints
from stages.maths.ragged import Ragged
from stages.models import checkpoints, loading
from stages.models.token_texts import decoder, token_texts
from stages.responses.trees import are_trees
from stages.shards import schemas
from stages.shards.lineage import Source, describe, model_source
from stages.shards.origin import foreign_notes, sampling_model
from stages.shards.parts import Artefact, artefact_source, open_artefact
from stages.shards.schemas import CUTPOINTS
from stages.shards.sharding import resolve_shards, split
from stages.shards.tables import encode_names, list_array, ragged
from stages.shards.writing import open_part

if TYPE_CHECKING:
    Cut = Callable[[pa.Table, Ragged, Ragged, np.ndarray], Segments]
    """(N rows, their token ids and log-probabilities, cutpoint flags of all tokens [V]) → segments."""

_ROWS_AT_ONCE = 5_000  # of the arithmetic: small arrays stay in the cache, twice as fast as all at once


def run(config: Config, progress: Progress = Silent()) -> Summary:
    """Cuts the parts of this shard; each part of the input becomes the part of the same number.

    Raises:
      UserError: wrong options, an input of another stage, missing columns, a partition function that fails.
      IncompleteInput: parts of the input are missing or torn.
    """

    started = time.monotonic()
    trajectories = open_artefact(config.trajectories, schemas.TRAJECTORIES)
    config = _resolve(config, trajectories)
    cut, made_with = _make_cut(config, trajectories)
    columns = ["trajectory_id", "token_ids", "logprobs"]
    at_once = _ROWS_AT_ONCE
    if config.partition == "branches":  # needs a question's responses side by side
        _check_questions_lie_in_one_part(trajectories)
        columns, at_once = [*columns, "question_id"], max(1, trajectories.rows)
    mine = [trajectories.parts[i] for i in split(len(trajectories.parts), *resolve_shards(config))]
    trajectory_count = sum(part.rows for part in mine)
    progress.start("segment", trajectory_count, "trajectories")
    rows, up_to_date = 0, True
    for part in mine:
        lineage = describe(
            "segment", schemas.CUTPOINTS, config, inputs=(artefact_source(trajectories, config.out, part), *made_with)
        )
        with open_part(
            config.out,
            part.index,
            part.count,
            lineage,
            schemas.CUTPOINTS,
            overwrite=config.overwrite,
            progress=progress,
        ) as writer:
            if not writer.up_to_date:
                table = trajectories.read(part, columns)
                slices = [(first, table.slice(first, at_once)) for first in range(0, max(table.num_rows, 1), at_once)]
                cuts = pa.concat_tables([_cut_slice(some, first, part.path, config.rho, cut) for first, some in slices])
                writer.write(cuts, {"trajectories": table.num_rows})
        rows, up_to_date = rows + writer.rows, up_to_date and writer.up_to_date
        progress.advance(part.rows)
    return Summary(
        stage="segment",
        out=str(config.out),
        rows=rows,
        seconds=time.monotonic() - started,
        up_to_date=up_to_date,
        figures={} if config.partition == "tree" else {"segments per trajectory": rows / max(trajectory_count, 1)},
        notes=foreign_notes(trajectories),
    )


def _resolve(config: Config, trajectories: Artefact) -> Config:
    """With the partition that a left out one stands for.

    Raises:
      UserError: another partition than their own for trees.
    """

    in_trees = are_trees(trajectories)
    if in_trees and config.partition not in (None, "tree"):
        raise UserError(
            f"{trajectories.path} holds stretches of trees, and each of them is a segment: leave out --partition "
            f"{config.partition}, or sample whole responses (spo rollout without --tree)"
        )
    return dataclasses.replace(config, partition=config.partition or ("tree" if in_trees else "cutpoints"))


def _check_questions_lie_in_one_part(trajectories: Artefact) -> None:
    """Our own rollouts see to it; Parquet from elsewhere may do otherwise.

    Raises:
      UserError: naming a question and two files.
    """
    home: dict[str, Path] = {}
    for part in trajectories.parts if not trajectories.lineage else ():
        for question in trajectories.read(part, ["question_id"])["question_id"].unique().to_pylist():
            if home.setdefault(question, part.path) != part.path:
                raise UserError(
                    f"the partition branches compares the responses to a question, but those to {question} lie in "
                    f"{home[question]} and in {part.path}: put them in one file"
                )


def _cut_slice(rows: pa.Table, first: int, path: Path, rho: float, cut: Cut) -> pa.Table:
    """`cutpoint_table` of some rows of a part; an error, which counts from the first of them, says where they are."""
    try:
        return cutpoint_table(rows, rho, cut)
    except UserError as error:
        where = f"{path}, counted from trajectory {rows['trajectory_id'][0]} (row {first})"
        raise UserError(f"{where}: {error}") from error


def cutpoint_table(trajectories: pa.Table, rho: float, cut: Cut) -> pa.Table:
    """Rows of `schemas.CUTPOINTS` for N trajectories (trajectory_id, token_ids, logprobs, and what the cut reads)."""

    token_ids, logprobs = ragged(trajectories["token_ids"]), ragged(trajectories["logprobs"])
    is_cutpoint = find_cutpoints(logprobs, rho)
    segments = cut(trajectories, token_ids, logprobs, is_cutpoint)
    columns = [
        trajectories["trajectory_id"].combine_chunks().take(pa.array(segments.trajectory)),
        pa.array(segments.number.astype("int32")),
        pa.array(segments.start.astype("int32")),
        pa.array(segments.end.astype("int32")),
        list_array(segment_cutpoints(segments, logprobs.lengths, is_cutpoint), pa.int32()),
    ]
    return pa.table(columns, schema=CUTPOINTS.arrow)


def _make_cut(config: Config, trajectories: Artefact) -> tuple[Cut, tuple[Source, ...]]:
    """The partition as one function over a batch, and what it depends on beside the configuration."""

    by_name: dict[str, Cut] = {
        "cutpoints": lambda rows, tokens, logprobs, flags: cuts.partition_by_cutpoints(
            tokens.lengths, flags, config.interval
        ),
        "fixed": lambda rows, tokens, logprobs, flags: cuts.partition_by_length(tokens.lengths, config.segment_tokens),
        "count": lambda rows, tokens, logprobs, flags: cuts.partition_by_count(tokens.lengths, config.num_segments),
        "token": lambda rows, tokens, logprobs, flags: cuts.partition_by_token(tokens.lengths),
        "trajectory": lambda rows, tokens, logprobs, flags: cuts.partition_by_trajectory(tokens.lengths),
        "tree": lambda rows, tokens, logprobs, flags: cuts.partition_by_trajectory(tokens.lengths),
        "branches": lambda rows, tokens, logprobs, flags: _cut_where_responses_part(rows, tokens),
    }
    assert config.partition is not None, "resolved by run"
    if config.partition in by_name:
        return by_name[config.partition], ()
    if config.partition == "delimiter":
        return _delimiter_cut(config, trajectories)
    function, digest = load_function(config.partition, "--partition")
    return _user_cut(config.partition, function), (Source(config.partition, digest, "function"),)


def _cut_where_responses_part(rows: pa.Table, tokens: Ragged) -> Segments:

    return partition_at_boundaries(tokens.lengths, branch_starts(tokens, encode_names(rows["question_id"])))


def _delimiter_cut(config: Config, trajectories: Artefact) -> tuple[Cut, tuple[Source, ...]]:

    model = config.tokenizer or sampling_model(trajectories, "--tokenizer")
    if model is None:
        raise UserError(
            f"{config.trajectories} does not say which model sampled it, and the partition delimiter must read its "
            "tokens: pass --tokenizer MODEL"
        )
    directory = checkpoints.resolve(model)
    decode, pattern = decoder(loading.load_tokenizer(directory)), re.compile(config.delimiter)

    def cut(rows: pa.Table, tokens: Ragged, logprobs: Ragged, flags: np.ndarray) -> Segments:

        starts = [cuts.delimiter_starts(token_texts(decode, row), pattern) for row in tokens]
        return cuts.partition_at_boundaries(tokens.lengths, Ragged.of(starts, np.int64))

    return cut, (model_source(model, checkpoints.digest(directory), config.out),)


def _user_cut(name: str, function: Callable[..., Sequence[int]]) -> Cut:
    """A function of one trajectory, `(token_ids, logprobs, cutpoints) → starts`, over a batch."""

    def cut(rows: pa.Table, tokens: Ragged, logprobs: Ragged, flags: np.ndarray) -> Segments:

        starts = []
        for row in range(len(tokens)):
            begin, end = tokens.offsets[row] - tokens.offsets[0], tokens.offsets[row + 1] - tokens.offsets[0]
            try:
                found = np.asarray(function(tokens[row], logprobs[row], np.flatnonzero(flags[begin:end])))
            except Exception as error:  # code that is not ours may raise anything
                raise UserError(f"--partition {name} failed: {type(error).__name__}: {error}") from error
            if found.ndim != 1 or (found.size and not np.issubdtype(found.dtype, np.integer)):
                raise UserError(f"--partition {name} must return a list of token offsets; got {found.tolist()!r}")
            starts.append(found)
        return cuts.partition_at_boundaries(tokens.lengths, Ragged.of(starts, np.int64))

    return cut
