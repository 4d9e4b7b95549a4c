"""Finished samples of a chunk that is not committed yet: files `chunk-00003.samples-00000` beside the chunks.

A chunk of long responses takes hours, and a killed command would lose all of it. So its finished samples are written
every minute, and the next run takes them from there. A sample is known by its random key, which names it within its
work. The files go when the chunk is committed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.core.paths import AnyPath
from stages.core.storage import replacing
from stages.shards.disk import disk_errors
from stages.shards.lineage import FOOTER_KEY, Lineage

KEEP_SECONDS = 60.0
"""Seconds between two files: the most sampling that a killed command loses, beside samples that are not finished."""

_SCHEMA = pa.schema(
    {
        "key": pa.uint64(),
        "token_ids": pa.list_(pa.int32()),
        "logprobs": pa.list_(pa.float32()),
        "finish_reason": pa.string(),
        "entropies": pa.list_(pa.float32()),
    }
)


@dataclass(frozen=True)
class KeptSample:
    """A finished sample: int32 [T] tokens, float32 [T] log-probabilities, the end, float32 [T] entropies if known."""

    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    finish_reason: str
    entropies: NDArray[np.float32] | None


class KeptSamples:
    """The finished samples of one chunk; several threads may add to it.

    Attributes:
      found: samples of earlier runs, by key.
    """

    def __init__(self, name_file: Callable[[int], AnyPath], lineage: Lineage, earlier: list[AnyPath]) -> None:
        """Read the samples of earlier runs.

        Args:
          name_file: path of file number n.
          lineage: of the part; written into every file.
          earlier: files of earlier runs of the same work.
        """
        self.found: dict[int, KeptSample] = {}
        for path in earlier:
            self.found |= _read(path)
        self._name_file, self._lineage, self._next = name_file, lineage, len(earlier)
        self._new: dict[int, KeptSample] = {}
        self._written_at, self._lock = time.monotonic(), threading.Lock()

    def add(self, key: int, sample: KeptSample) -> None:
        """Add a finished sample, and write those that are not written yet if a file is due.

        Raises:
          UserError: the disk is full.
        """
        with self._lock:
            self._new[key] = sample
            due = time.monotonic() - self._written_at >= KEEP_SECONDS
        if due:
            self.write()

    def write(self) -> None:
        """Write the samples that are not written yet.

        Raises:
          UserError: the disk is full.
        """
        with self._lock:
            new, self._new = self._new, {}
            path, self._next = self._name_file(self._next), self._next + bool(new)
            self._written_at = time.monotonic()
        if not new:
            return
        samples = list(new.values())
        table = pa.table(
            {
                "key": list(new),
                "token_ids": [sample.token_ids for sample in samples],
                "logprobs": [sample.logprobs for sample in samples],
                "finish_reason": [sample.finish_reason for sample in samples],
                "entropies": [sample.entropies for sample in samples],
            },
            _SCHEMA.with_metadata({FOOTER_KEY: self._lineage.to_json().encode()}),
        )
        with disk_errors(path), replacing(path) as file:
            pq.write_table(table, file, compression="zstd", write_page_checksum=True)


def read_lineage(path: AnyPath) -> Lineage | None:
    """Return the lineage of the work that a file belongs to; None if the file is corrupt."""
    try:
        with path.open("rb") as file:
            metadata = pq.read_schema(cast("BinaryIO", file)).metadata or {}
        return Lineage.from_json(metadata[FOOTER_KEY])
    except (pa.ArrowException, KeyError, ValueError):
        return None


def _read(path: AnyPath) -> dict[int, KeptSample]:
    with path.open("rb") as file:
        table = pq.read_table(cast("BinaryIO", file), page_checksum_verification=True)
    return {
        row["key"]: KeptSample(
            np.array(row["token_ids"], np.int32),
            np.array(row["logprobs"], np.float32),
            row["finish_reason"],
            None if row["entropies"] is None else np.array(row["entropies"], np.float32),
        )
        for row in table.to_pylist()
    }
