"""`spo segment`: cut every trajectory into segments → cutpoints/.

The output has one row per segment, with the offsets of the cutpoints in it: the tokens whose probability is below ρ,
which form the probability mask. The nodes of a sampled tree are already segments; each becomes one row.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.configs.segment import Config
from stages.core.errors import UserError
from stages.core.paths import AnyPath
from stages.core.progress import Progress, Silent, Summary
from stages.core.user_function import load_function
from stages.maths import partition
from stages.maths.branches import branch_starts
from stages.maths.partition import Segments
from stages.maths.ragged import Ragged
from stages.models import checkpoints
from stages.models.token_texts import Decode, decoder, token_texts
from stages.responses.trees import are_trees
from stages.shards import schemas
from stages.shards.lineage import Source, describe, model_source
from stages.shards.origin import foreign_notes, sampling_model
from stages.shards.parts import Artefact, Part, artefact_source, open_artefact
from stages.shards.schemas import CUTPOINTS
from stages.shards.sharding import resolve_shards, split
from stages.shards.tables import encode_names, list_array, ragged
from stages.shards.writing import open_part

_BATCH_ROWS = 5_000  # small arrays stay in the cache: twice as fast as a whole part at once


@dataclass(frozen=True)
class TrajectoryBatch:
    """N trajectories of one part, with T tokens in total.

    Attributes:
      rows: their columns trajectory_id, token_ids, logprobs; for the partition `branches` also question_id.
      token_ids: [N rows] of token ids.
      logprobs: [N rows] of log-probabilities of the sampled tokens.
      is_cutpoint: [T] bool, whether a token's probability is below ρ.
    """

    rows: pa.Table
    token_ids: Ragged
    logprobs: Ragged
    is_cutpoint: NDArray[np.bool_]


Partition = Callable[[TrajectoryBatch], Segments]
"""Cuts a batch of trajectories into segments."""


def run(config: Config, progress: Progress = Silent()) -> Summary:
    """Cut the trajectories of this call's shards; each part of the input becomes the part of the same number.

    Raises:
      UserError: invalid options, an input of another stage, missing columns, or a partition function that fails.
      IncompleteInput: parts of the input are missing or corrupt.
    """
    started = time.monotonic()
    trajectories = open_artefact(config.trajectories, schemas.TRAJECTORIES)
    config = _resolve(config, trajectories)
    cut, sources = open_partition(config, trajectories)
    columns, batch_rows = ["trajectory_id", "token_ids", "logprobs"], _BATCH_ROWS
    if config.partition == "branches":  # compares all responses to a question, so they must be in the same batch
        _check_questions_are_in_one_part(trajectories)
        columns, batch_rows = [*columns, "question_id"], max(1, trajectories.rows)
    own_parts = [trajectories.parts[i] for i in split(len(trajectories.parts), *resolve_shards(config))]
    trajectory_count = left = sum(part.rows for part in own_parts)
    rows, up_to_date = 0, True
    for part in own_parts:
        inputs = (artefact_source(trajectories, config.out, part), *sources)
        with open_part(
            config.out,
            part.index,
            part.count,
            describe("segment", CUTPOINTS, config, inputs=inputs),
            CUTPOINTS,
            overwrite=config.overwrite,
            progress=progress,
        ) as writer:
            if not writer.up_to_date:
                if up_to_date:  # the first part with work
                    progress.start("segment", left, "trajectories")
                table = trajectories.read(part, columns)
                writer.write(_cut_part(table, part, batch_rows, config.rho, cut), {"trajectories": table.num_rows})
        rows, up_to_date = rows + writer.rows, up_to_date and writer.up_to_date
        left -= part.rows
        if not up_to_date:
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
    """Return the configuration with the default partition filled in.

    Raises:
      UserError: a partition other than `tree` for sampled trees.
    """
    in_trees = are_trees(trajectories)
    if in_trees and config.partition not in (None, "tree"):
        raise UserError(
            f"{trajectories.path} holds nodes of trees, and each node is a segment: omit --partition "
            f"{config.partition}, or sample whole responses (spo rollout without --tree)"
        )
    return dataclasses.replace(config, partition=config.partition or ("tree" if in_trees else "cutpoints"))


def _check_questions_are_in_one_part(trajectories: Artefact) -> None:
    """Check that no question has responses in two parts; only Parquet from other tools may have such questions.

    Raises:
      UserError: the message names a question and two files.
    """
    path_of: dict[str, AnyPath] = {}
    for part in trajectories.parts if not trajectories.lineage else ():
        for question in trajectories.read(part, ["question_id"])["question_id"].unique().to_pylist():
            if path_of.setdefault(question, part.path) != part.path:
                raise UserError(
                    f"the partition branches compares all responses to a question, but the responses to {question} are "
                    f"in {path_of[question]} and in {part.path}: put them in one file"
                )


def _cut_part(table: pa.Table, part: Part, batch_rows: int, rho: float, cut: Partition) -> pa.Table:
    """Return the rows of `schemas.CUTPOINTS` for the trajectories of a part, computed batch by batch.

    Raises:
      UserError: as `cut`; the message names the part and the first trajectory of the batch.
    """
    tables = []
    for first in range(0, max(table.num_rows, 1), batch_rows):
        batch = table.slice(first, batch_rows)
        try:
            tables.append(cutpoint_table(batch, rho, cut))
        except UserError as error:
            where = f"{part.path}, counted from trajectory {batch['trajectory_id'][0]} (row {first})"
            raise UserError(f"{where}: {error}") from error
    return pa.concat_tables(tables)


def cutpoint_table(trajectories: pa.Table, rho: float, cut: Partition) -> pa.Table:
    """Return the rows of `schemas.CUTPOINTS` for N trajectories.

    Args:
      trajectories: the columns of `TrajectoryBatch.rows`.
      rho: tokens with a probability below this are cutpoints.
      cut: the partition.
    """
    logprobs = ragged(trajectories["logprobs"])
    is_cutpoint = partition.find_cutpoints(logprobs, rho)
    segments = cut(TrajectoryBatch(trajectories, ragged(trajectories["token_ids"]), logprobs, is_cutpoint))
    columns = [
        trajectories["trajectory_id"].combine_chunks().take(pa.array(segments.trajectory)),
        pa.array(segments.number.astype("int32")),
        pa.array(segments.start.astype("int32")),
        pa.array(segments.end.astype("int32")),
        list_array(partition.segment_cutpoints(segments, logprobs.lengths, is_cutpoint), pa.int32()),
    ]
    return pa.table(columns, schema=CUTPOINTS.arrow)


def open_partition(config: Config, trajectories: Artefact) -> tuple[Partition, tuple[Source, ...]]:
    """Return the partition, and the inputs that it depends on besides the configuration: a tokenizer or a function."""
    match config.partition:
        case "cutpoints" | "fixed" | "count" | "token" | "trajectory" | "tree" | "branches":
            return partial(_cut_built_in, config), ()
        case "delimiter":
            return _open_delimiter(config, trajectories)
    assert config.partition is not None, "resolved by run"
    function, digest = load_function(config.partition, "--partition")
    return partial(_cut_by_function, config.partition, function), (Source(config.partition, digest, "function"),)


def _cut_built_in(config: Config, batch: TrajectoryBatch) -> Segments:
    """Cut a batch by a partition that needs lengths, cutpoints or token ids only."""
    lengths = batch.token_ids.lengths
    match config.partition:
        case "cutpoints":
            return partition.partition_by_cutpoints(lengths, batch.is_cutpoint, config.interval)
        case "fixed":
            return partition.partition_by_length(lengths, config.segment_tokens)
        case "count":
            return partition.partition_by_count(lengths, config.num_segments)
        case "token":
            return partition.partition_by_token(lengths)
        case "branches":
            starts = branch_starts(batch.token_ids, encode_names(batch.rows["question_id"]))
            return partition.partition_at_boundaries(lengths, starts)
    return partition.partition_by_trajectory(lengths)  # "trajectory", and "tree", where each row is a node


def _open_delimiter(config: Config, trajectories: Artefact) -> tuple[Partition, tuple[Source, ...]]:
    """Return the partition after each match of `--delimiter`, and the model whose tokenizer decodes the tokens."""
    from stages.models import loading  # transformers takes a second to import, and only this partition needs it

    model = config.tokenizer or sampling_model(trajectories, "--tokenizer")
    if model is None:
        raise UserError(
            f"{config.trajectories} does not name the model that sampled it, and the partition delimiter needs its "
            "tokenizer: pass --tokenizer MODEL"
        )
    directory = checkpoints.resolve(model)
    decode = decoder(loading.load_tokenizer(directory))
    source = model_source(model, checkpoints.digest(directory), config.out)
    return partial(_cut_by_delimiter, decode, re.compile(config.delimiter)), (source,)


def _cut_by_delimiter(decode: Decode, pattern: re.Pattern[str], batch: TrajectoryBatch) -> Segments:
    """Cut a batch after each match of a pattern in the decoded text."""
    starts = [partition.delimiter_starts(token_texts(decode, row), pattern) for row in batch.token_ids]
    return partition.partition_at_boundaries(batch.token_ids.lengths, Ragged.of(starts, np.int64))


def _cut_by_function(name: str, function: Callable[..., Sequence[int]], batch: TrajectoryBatch) -> Segments:
    """Cut a batch by a user's function of one trajectory: `(token_ids, logprobs, cutpoints) → starts`.

    Raises:
      UserError: the function raises an exception, or returns something other than a list of integers.
    """
    offsets = batch.token_ids.offsets - batch.token_ids.offsets[0]
    starts = []
    for row, (begin, end) in enumerate(pairwise(offsets.tolist())):
        cutpoints = np.flatnonzero(batch.is_cutpoint[begin:end])
        try:
            found = np.asarray(function(batch.token_ids[row], batch.logprobs[row], cutpoints))
        except (Exception, SystemExit) as error:  # a user's function may raise anything, or call sys.exit
            raise UserError(f"--partition {name} failed: {type(error).__name__}: {error}") from error
        if found.ndim != 1 or (found.size and not np.issubdtype(found.dtype, np.integer)):
            raise UserError(f"--partition {name} must return a list of token offsets; got {found.tolist()!r}")
        starts.append(found)
    return partition.partition_at_boundaries(batch.token_ids.lengths, Ragged.of(starts, np.int64))
