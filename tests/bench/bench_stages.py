"""Compare two stages, without rollouts, with the disk: `python -m tests.bench.bench_stages [rows]`.

The input is one artefact of 100,000 trajectories of about 150 tokens. Measured: the whole segment stage (read, find
cutpoints, cut, write), and the estimate stage without its rollouts (read, join, Monte Carlo means over 9 given rewards
per state, advantages, write). The peer reads the same columns and writes the same tables with pyarrow, with the same
settings, without arithmetic; it runs in turn with the stages. Medians of three rounds.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages import segment
from stages.estimators.monte_carlo import chain_rows
from stages.estimators.rows import build_rows
from stages.estimators.segments import load_segments
from stages.maths.ragged import Ragged, offsets_of
from stages.maths.values import monte_carlo_values
from stages.shards import schemas
from stages.shards.lineage import describe
from stages.shards.parts import open_artefact
from stages.shards.writing import open_part
from tests.bench.bench_segment import ROLLOUTS, trajectories

ROUNDS = 3
CUT = ["trajectory_id", "token_ids", "logprobs"]
JOINED = ["trajectory_id", "parent_id", "question_id", "prompt_token_ids", "token_ids", "reference", "reward"]


def write_trajectories(directory: Path, n: int, random: np.random.Generator) -> None:
    """Write an artefact of n trajectories as `spo rollout` does."""
    _, rows = trajectories(n, random)
    questions = [f"q{i // 8}" for i in range(n)]
    prompts = Ragged.of([random.integers(0, 150_000, 80) for _ in range(n // 8 + 1)], np.int32)
    columns = {
        "trajectory_id": rows["trajectory_id"],
        "parent_id": pa.nulls(n, pa.string()),
        "question_id": pa.array(questions),
        "depth": pa.array(np.zeros(n, np.int32)),
        "prompt": pa.array([f"prompt of {name}" for name in questions]),
        "prompt_token_ids": pa.array([prompts[i // 8] for i in range(n)], pa.list_(pa.int32())),
        "token_ids": rows["token_ids"],
        "logprobs": rows["logprobs"],
        "text": pa.array(["a response"] * n),
        "finish_reason": pa.array(["stop"] * n),
        "answer": pa.nulls(n, pa.string()),
        "reference": pa.array(["1"] * n),
        "reward": rows["reward"],
    }
    config = segment.Config(trajectories=directory, out=directory)  # any config will do: the lineage needs a digest
    with open_part(directory, 0, 1, describe("rollout", schemas.TRAJECTORIES, config), schemas.TRAJECTORIES) as part:
        part.write(pa.table(columns, schema=schemas.TRAJECTORIES.arrow))


def run_segment(source: Path, out: Path) -> None:
    segment.run(segment.Config(trajectories=source, out=out))


def run_arithmetic(source: Path, cuts_at: Path, out: Path, random: np.random.Generator) -> float:
    """Run the estimate stage without rollouts; return the seconds spent on generating rewards, to be subtracted."""
    cutpoints, sampled = (open_artefact(path) for path in (cuts_at, source))
    batch = load_segments(cutpoints, cutpoints.parts[0], sampled)
    start = time.perf_counter()
    draws = offsets_of(np.where(batch.needs_value, ROLLOUTS, 0))
    rewards = Ragged(random.integers(0, 2, draws[-1]).astype(np.float32), draws)
    generation_seconds = time.perf_counter() - start
    everything = range(batch.trajectories.num_rows)
    table = build_rows(*chain_rows(batch, everything, monte_carlo_values(rewards).mean), rewards).table
    lineage = describe("estimate", schemas.ADVANTAGES, segment.Config(trajectories=source, out=out))
    with open_part(out, 0, 1, lineage, schemas.ADVANTAGES) as part:
        part.write(table)
    return generation_seconds


def copy(sources: list[tuple[Path, list[str]]], result: pa.Table, to: Path) -> None:
    """Read columns of artefacts and write a table, with pyarrow alone."""
    for path, columns in sources:
        pq.read_table(path, columns=columns)
    pq.write_table(result, to, compression="zstd")


def clock(work: Callable[..., float | None], *arguments: Any) -> float:
    """Return the seconds of a call, minus the seconds that it returns as not to be counted."""
    start = time.perf_counter()
    excluded = work(*arguments)
    return time.perf_counter() - start - (excluded or 0.0)


def main(n: int = 100_000) -> None:
    """Print seconds and ratios."""
    random = np.random.default_rng(0)
    times: dict[str, list[float]] = {"segment": [], "advantages": [], "segment peer": [], "advantages peer": []}
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        source = base / "trajectories"
        write_trajectories(source, n, random)
        for number in range(ROUNDS):
            cuts, out, copies = base / f"cuts{number}", base / f"advantages{number}", base / "copy.parquet"
            times["segment"].append(clock(run_segment, source, cuts))
            times["segment peer"].append(clock(copy, [(source, CUT)], pq.read_table(cuts), copies))
            times["advantages"].append(clock(run_arithmetic, source, cuts, out, random))
            inputs = [(source, JOINED), (cuts, list(schemas.CUTPOINTS.names))]
            times["advantages peer"].append(clock(copy, inputs, pq.read_table(out), copies))
    middle = {name: statistics.median(values) for name, values in times.items()}
    both, peer = (middle["segment" + end] + middle["advantages" + end] for end in ("", " peer"))
    for name in ("segment", "advantages"):
        print(f"  {name:11} {middle[name]:6.2f} s, reading and writing the same {middle[name + ' peer']:6.2f} s")
    print(f"segmenting and advantages over {n:,} trajectories: {both / peer:.2f} × the time of reading and writing")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
