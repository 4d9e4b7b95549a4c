"""Record what the trainer saw of every kept token, for `spo train --token-metrics`.

    .NAME.partial/token-metrics/step-00000012.parquet      each step of unfinished work, written before its checkpoint
    NAME/token-metrics/part-00000-of-00001.parquet         all steps, inside the directory of the policy

A step that is taken again after a restart replaces its file, so the artefact holds the steps that led to the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.configs.train import TOKEN_METRICS_NAME
from stages.core.storage import replacing
from stages.optimization.batches import Example
from stages.optimization.step import KeptTokens
from stages.shards.disk import write_parquet
from stages.shards.lineage import FOOTER_KEY, Lineage
from stages.shards.names import part_name
from stages.shards.schemas import TOKEN_METRICS
from stages.training.pool import ExamplePool


@dataclass(frozen=True)
class TokenRecord:
    """Writes the kept tokens of each step; rank 0 alone has one.

    Attributes:
      directory: of the files of the steps.
      lineage: of the artefact.
      pool: the examples of the call, which name the tokens.
    """

    directory: Path
    lineage: Lineage
    pool: ExamplePool

    @classmethod
    def beside(cls, unfinished: Path, lineage: Lineage, pool: ExamplePool) -> TokenRecord:
        """Return the record of the unfinished work in a directory."""
        directory = unfinished / TOKEN_METRICS_NAME
        directory.mkdir(exist_ok=True)
        return cls(directory, lineage, pool)

    def write_step(self, step: int, batch: Sequence[int], tokens: Sequence[KeptTokens]) -> None:
        """Write the tokens of a step, from 1.

        Args:
          batch: the examples of the step, as indices in the pool.
          tokens: of the examples that have kept tokens.
        """
        tables = [self._rows(step, batch[one.index], one) for one in tokens]
        table = pa.concat_tables(tables) if tables else TOKEN_METRICS.arrow.empty_table()
        with replacing(self._file(step)) as file:
            pq.write_table(table, file, compression="zstd")

    def publish(self, directory: Path, steps: int) -> None:
        """Write the artefact of the first `steps` steps into the directory of a policy."""
        lineage = self.lineage.at(0, 1)
        schema = TOKEN_METRICS.arrow.with_metadata({FOOTER_KEY: lineage.to_json().encode()})
        target = directory / TOKEN_METRICS_NAME
        target.mkdir()
        with replacing(target / part_name(0, 1)) as file:
            write_parquet(file, self._read(steps), schema, TOKEN_METRICS.row_group)

    def _read(self, steps: int) -> Iterator[pa.Table]:
        for step in range(1, steps + 1):
            if self._file(step).exists():  # a step without a kept token has none
                yield pq.read_table(self._file(step)).cast(TOKEN_METRICS.arrow)

    def _file(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}.parquet"

    def _rows(self, step: int, index: int, tokens: KeptTokens) -> pa.Table:
        example, count = self.pool.examples[index], tokens.current.size
        columns = {
            "step": np.full(count, step, np.int32),
            "trajectory_id": [self.pool.names[index]] * count,
            "age": np.full(count, self.pool.ages[index], np.int32),
            "position": positions(example),
            "token_id": example.tokens[example.kept],
            "old_logprob": tokens.old,
            "new_logprob": tokens.current,
            "sampler_logprob": _nullable(example.recorded, count),
            "entropy": tokens.entropy,
            "ratio": tokens.ratio,
            "clipped": tokens.clipped,
            "advantage": tokens.advantage,
        }
        return pa.table([pa.array(columns[one.name], one.type) for one in TOKEN_METRICS.columns], TOKEN_METRICS.arrow)


def positions(example: Example) -> NDArray[np.int64]:
    """Return the offsets of the kept tokens in the response, or in the node or rollout that the example trains: [M]."""
    return example.kept - (example.tokens.size - example.response_tokens)


def _nullable(recorded: NDArray[np.floating] | None, count: int) -> pa.Array:
    """Return recorded log-probabilities, null where the sampler recorded none: [count]."""
    if recorded is None:
        return pa.nulls(count, pa.float32())
    return pa.array(recorded.astype(np.float32), mask=~np.isfinite(recorded))
