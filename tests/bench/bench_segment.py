"""Compare the time of the arithmetic with the time of the disk: `python -m tests.bench.bench_segment [trajectories]`.

Every partition, the cutpoints of its segments and the chain's advantages over 100,000 trajectories of about 150 tokens,
and Monte Carlo means over 9 rewards per state of the cutpoint partition, in chunks, as a stage processes a part;
against writing and reading the same rows as zstd Parquet. Prints seconds, and fractions of the disk's time.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.maths.advantages import chain_advantages, states_to_estimate
from stages.maths.partition import (
    Segments,
    find_cutpoints,
    partition_by_count,
    partition_by_cutpoints,
    partition_by_length,
    partition_by_token,
    partition_by_trajectory,
    segment_cutpoints,
)
from stages.maths.ragged import Ragged, offsets_of
from stages.maths.values import monte_carlo_values

CHUNK = 5_000
ROLLOUTS = 9
PARTITIONS: dict[str, Callable[[NDArray[np.int64], NDArray[np.bool_]], Segments]] = {
    "cutpoints, k = 5": lambda lengths, is_cutpoint: partition_by_cutpoints(lengths, is_cutpoint, 5),
    "fixed, 30": lambda lengths, _: partition_by_length(lengths, 30),
    "count, 3": lambda lengths, _: partition_by_count(lengths, 3),
    "token": lambda lengths, _: partition_by_token(lengths),
    "trajectory": lambda lengths, _: partition_by_trajectory(lengths),
}


def trajectories(n: int, random: np.random.Generator) -> tuple[Ragged, pa.Table]:
    """Return log-probabilities of n responses, with one token in five below ρ, and the rows that hold them."""
    offsets = offsets_of(random.integers(50, 250, n))
    tokens = int(offsets[-1])
    uncertain = random.random(tokens) < 0.2
    probabilities = np.where(uncertain, random.uniform(0.1, 0.9, tokens), random.uniform(0.9, 1.0, tokens))
    logprobs = Ragged(np.log(probabilities).astype(np.float32), offsets)
    ids = pa.array(random.integers(0, 150_000, tokens), pa.int32())
    arrow_offsets = pa.array(offsets, pa.int32())
    columns = {
        "trajectory_id": pa.array([f"q{i // 8}/{i % 8}" for i in range(n)]),
        "token_ids": pa.ListArray.from_arrays(arrow_offsets, ids),
        "logprobs": pa.ListArray.from_arrays(arrow_offsets, pa.array(logprobs.values)),
        "reward": pa.array(random.integers(0, 2, n), pa.float32()),
    }
    return logprobs, pa.table(columns)


def parquet_seconds(table: pa.Table) -> tuple[float, float]:
    """Return the seconds to write and to read the rows."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "rows.parquet"
        start = time.perf_counter()
        pq.write_table(table, path, compression="zstd")
        written = time.perf_counter()
        pq.read_table(path)
        return written - start, time.perf_counter() - written


def chunks(logprobs: Ragged) -> Iterator[Ragged]:
    """Yield the responses in chunks, without copies."""
    for first in range(0, len(logprobs), CHUNK):
        yield Ragged(logprobs.values, logprobs.offsets[first : first + CHUNK + 1])


def arithmetic_seconds(name: str, logprobs: Ragged, random: np.random.Generator) -> tuple[float, int]:
    """Return the seconds to compute segments, masks and advantages of all chunks, and the number of segments."""
    uses_cutpoints, seconds, total = name.startswith("cutpoints"), 0.0, 0
    for chunk in chunks(logprobs):
        start = time.perf_counter()
        lengths, is_cutpoint = chunk.lengths, find_cutpoints(chunk, 0.9)
        segments = PARTITIONS[name](lengths, is_cutpoint)
        cutpoints = segment_cutpoints(segments, lengths, is_cutpoint)
        needs_value = states_to_estimate(segments.start, cutpoints if uses_cutpoints else None)
        seconds += time.perf_counter() - start

        reward = random.integers(0, 2, len(chunk))
        values = random.random(len(segments))
        draws = offsets_of(np.where(needs_value, ROLLOUTS, 0))
        rewards = Ragged(random.integers(0, 2, draws[-1]).astype(np.float32), draws) if uses_cutpoints else None

        start = time.perf_counter()
        chain_advantages(segments, values if rewards is None else monte_carlo_values(rewards).mean, reward)
        seconds += time.perf_counter() - start
        total += len(segments)
    return seconds, total


def main(n: int = 100_000) -> float:
    """Print the table; return the time of all partitions divided by the time of the disk."""
    random = np.random.default_rng(0)
    logprobs, table = trajectories(n, random)
    write, read = parquet_seconds(table)
    disk = write + read
    print(f"{n:,} trajectories, {logprobs.flat.size:,} tokens: Parquet written in {write:.2f} s, read in {read:.2f} s")
    all_seconds = [arithmetic_seconds(name, logprobs, random) for name in PARTITIONS]
    for name, (seconds, segments) in zip(PARTITIONS, all_seconds, strict=True):
        print(f"  {name:17} {seconds:6.2f} s  {seconds / disk:5.2f} of the disk's time  {segments:>12,} segments")
    total = sum(seconds for seconds, _ in all_seconds)
    print(f"  {'all of them':17} {total:6.2f} s  {total / disk:5.2f} of the disk's time")
    return total / disk


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
