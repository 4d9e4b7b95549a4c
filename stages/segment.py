"""`spo segment`: cut every trajectory into segments → cutpoints/.

One row per segment, with the offsets of its cutpoints: the tokens of probability below ρ, the probability mask.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.config import option, validate
from stages.errors import UserError
from stages.flags import OutputFlags
from stages.progress import Progress, Silent, Summary

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from stages.maths.partition import Segments
    from stages.maths.ragged import Ragged
    from stages.shards.lineage import Source
    from stages.shards.parts import Artefact

    Cut = Callable[[Ragged, Ragged, np.ndarray], Segments]
    """(token ids and log-probabilities of N trajectories, cutpoint flags of all tokens [V]) → segments."""

_PARTITIONS = ("cutpoints", "fixed", "count", "delimiter", "token", "trajectory")
_ROWS_AT_ONCE = 5_000  # of the arithmetic: small arrays stay in the cache, twice as fast as all at once


@dataclass(frozen=True, kw_only=True)
class Config(OutputFlags):
    """What `spo segment` is told."""

    trajectories: Path = option("What `spo rollout` wrote, or Parquet of another tool.", argument=True, result=False)
    partition: str = option(
        "Where to cut: cutpoints (before every k-th), fixed (every M tokens), count (K equal pieces), delimiter (after "
        "each match of a pattern), token, trajectory, or a function of yours as package.module:function.",
        default="cutpoints",
    )
    rho: float = option("A token is a cutpoint if its probability is below this.", default=0.9, above=0, maximum=1)
    interval: int = option("Cutpoints per segment (partition cutpoints).", default=5, minimum=1)
    segment_tokens: int = option("Tokens per segment (partition fixed).", default=30, minimum=1)
    num_segments: int = option("Segments per trajectory (partition count).", default=3, minimum=1)
    delimiter: str = option("Regular expression after which a segment ends (partition delimiter).", default=r"\n")
    tokenizer: str | None = option(
        "Model directory whose tokenizer reads the tokens (partition delimiter); left out, that of the sampling model.",
        default=None,
        result=False,
    )

    def __post_init__(self) -> None:
        validate(self)
        if self.partition not in _PARTITIONS and ":" not in self.partition:
            raise UserError(
                f"--partition must be one of {', '.join(_PARTITIONS)} or package.module:function; "
                f"got {self.partition!r}"
            )


def run(config: Config, progress: Progress = Silent()) -> Summary:
    """Cuts the parts of this shard; each part of the input becomes the part of the same number.

    Raises:
      UserError: wrong options, an input of another stage, missing columns, a partition function that fails.
      IncompleteInput: parts of the input are missing or torn.
    """
    import pyarrow as pa

    from stages.shards import schemas
    from stages.shards.lineage import describe
    from stages.shards.origin import without_lineage
    from stages.shards.parts import open_artefact, source
    from stages.shards.sharding import resolve, split
    from stages.shards.writing import open_part

    started = time.monotonic()
    trajectories = open_artefact(config.trajectories, schemas.TRAJECTORIES)
    cut, made_with = _make_cut(config, trajectories)
    mine = [trajectories.parts[i] for i in split(len(trajectories.parts), resolve(config.shard))]
    progress.start("segment", sum(part.rows for part in mine), "trajectories")
    rows, up_to_date = 0, True
    for part in mine:
        lineage = describe(
            "segment", schemas.CUTPOINTS, config, inputs=(source(trajectories, config.out, part), *made_with)
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
                table = trajectories.read(part, ["trajectory_id", "token_ids", "logprobs"])
                firsts = range(0, max(table.num_rows, 1), _ROWS_AT_ONCE)
                cuts = pa.concat_tables([_cut_slice(table, first, part.path, config.rho, cut) for first in firsts])
                writer.write(cuts, {"trajectories": table.num_rows})
        rows, up_to_date = rows + writer.rows, up_to_date and writer.up_to_date
        progress.advance(part.rows)
    return Summary(
        stage="segment",
        out=str(config.out),
        rows=rows,
        seconds=time.monotonic() - started,
        up_to_date=up_to_date,
        figures={"segments per trajectory": rows / max(sum(part.rows for part in mine), 1)},
        notes=without_lineage(trajectories),
    )


def _cut_slice(table: pa.Table, first: int, path: Path, rho: float, cut: Cut) -> pa.Table:
    """`cutpoint_table` of some rows of a part; an error, which counts from the first of them, says where they are."""
    try:
        return cutpoint_table(table.slice(first, _ROWS_AT_ONCE), rho, cut)
    except UserError as error:
        where = f"{path}, counted from trajectory {table['trajectory_id'][first]} (row {first})"
        raise UserError(f"{where}: {error}") from error


def cutpoint_table(trajectories: pa.Table, rho: float, cut: Cut) -> pa.Table:
    """Rows of `schemas.CUTPOINTS` for N trajectories (columns trajectory_id, token_ids, logprobs)."""
    import pyarrow as pa

    from stages.maths.partition import find_cutpoints, segment_cutpoints
    from stages.shards.schemas import CUTPOINTS
    from stages.shards.tables import list_array, ragged

    token_ids, logprobs = ragged(trajectories["token_ids"]), ragged(trajectories["logprobs"])
    is_cutpoint = find_cutpoints(logprobs, rho)
    segments = cut(token_ids, logprobs, is_cutpoint)
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
    from stages.maths import partition as cuts
    from stages.shards.lineage import Source
    from stages.user_function import load_function

    by_name: dict[str, Cut] = {
        "cutpoints": lambda tokens, logprobs, flags: cuts.by_cutpoints(tokens.lengths, flags, config.interval),
        "fixed": lambda tokens, logprobs, flags: cuts.fixed(tokens.lengths, config.segment_tokens),
        "count": lambda tokens, logprobs, flags: cuts.count(tokens.lengths, config.num_segments),
        "token": lambda tokens, logprobs, flags: cuts.every_token(tokens.lengths),
        "trajectory": lambda tokens, logprobs, flags: cuts.whole_trajectory(tokens.lengths),
    }
    if config.partition in by_name:
        return by_name[config.partition], ()
    if config.partition == "delimiter":
        return _delimiter_cut(config, trajectories)
    function, digest = load_function(config.partition, "--partition")
    return _user_cut(config.partition, function), (Source(config.partition, digest, "function"),)


def _delimiter_cut(config: Config, trajectories: Artefact) -> tuple[Cut, tuple[Source, ...]]:
    from stages.engines import checkpoints
    from stages.engines.token_texts import decoder, token_texts
    from stages.maths import partition as cuts
    from stages.maths.ragged import Ragged
    from stages.shards.lineage import model_source
    from stages.shards.origin import sampling_model

    model = config.tokenizer or sampling_model(trajectories, "--tokenizer")
    if model is None:
        raise UserError(
            f"{config.trajectories} does not say which model sampled it, and the partition delimiter must read its "
            "tokens: pass --tokenizer MODEL"
        )
    directory = checkpoints.resolve(model)
    decode = decoder(checkpoints.load_tokenizer(directory))

    def cut(tokens: Ragged, logprobs: Ragged, flags: np.ndarray) -> Segments:
        import numpy as np

        starts = [cuts.delimiter_starts(token_texts(decode, row), config.delimiter) for row in tokens]
        return cuts.at_boundaries(tokens.lengths, Ragged.of(starts, np.int64))

    return cut, (model_source(model, checkpoints.digest(directory), config.out),)


def _user_cut(name: str, function: Callable[..., Sequence[int]]) -> Cut:
    """A function of one trajectory, `(token_ids, logprobs, cutpoints) → starts`, over a batch."""
    from stages.maths import partition as cuts
    from stages.maths.ragged import Ragged

    def cut(tokens: Ragged, logprobs: Ragged, flags: np.ndarray) -> Segments:
        import numpy as np

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
        return cuts.at_boundaries(tokens.lengths, Ragged.of(starts, np.int64))

    return cut
