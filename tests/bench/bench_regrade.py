"""Measure how fast saved responses are regraded: `python -m tests.bench.bench_regrade [responses]`.

100,000 responses of 150 tokens to the 500 problems of MATH500, 200 each. Half of them end with the reference in a box,
the others with the reference of a random problem. `spo eval --regrade` as a whole, with reading and writing, against
math-verify in one process on 2,000 of the same responses (each reference is parsed once).
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.evaluation import regrading
from stages.shards.lineage import Lineage
from stages.shards.schemas import EVALUATION
from stages.shards.writing import open_part

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "math500"
PER_QUESTION, TOKENS, PEER = 200, 150, 2_000
WORDS = "We add what is given and see that the rest follows. " * 12


def references() -> list[str]:
    """Return the answers of MATH500."""
    (file,) = DATA.glob("test*.parquet")
    return pq.read_table(file, columns=["answer"])["answer"].to_pylist()


def responses(count: int, random: np.random.Generator) -> pa.Table:
    """Return rows of `schemas.EVALUATION` without rewards."""
    answers = references()
    question = np.arange(count) // PER_QUESTION % len(answers)
    given = np.where(random.random(count) < 0.5, question, random.integers(0, len(answers), count))
    offsets = pa.array(np.arange(0, count * TOKENS + 1, TOKENS), pa.int32())
    ids = pa.array(random.integers(0, 150_000, count * TOKENS), pa.int32())
    logprobs = pa.array(np.log(random.random(count * TOKENS)), pa.float32())
    columns = {
        "response_id": [f"q{q}/{i % PER_QUESTION}" for i, q in enumerate(question)],
        "task": ["math500"] * count,
        "question_id": [f"q{q}" for q in question],
        "subject": [None] * count,
        "level": [None] * count,
        "sample": np.arange(count) % PER_QUESTION,
        "max_tokens": [2048] * count,
        "prompt": [None] * count,
        "prompt_token_ids": [[0]] * count,
        "token_ids": pa.ListArray.from_arrays(offsets, ids),
        "logprobs": pa.ListArray.from_arrays(offsets, logprobs),
        "text": [f"{WORDS}The answer is $\\boxed{{{answers[g]}}}$." for g in given],
        "finish_reason": ["stop"] * count,
        "answer": [None] * count,
        "reference": [answers[q] for q in question],
        "reward": [None] * count,
    }
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in EVALUATION.arrow]
    return pa.table(arrays, schema=EVALUATION.arrow)


def regrade_seconds(table: pa.Table) -> tuple[float, pa.Table]:
    """Return the seconds of the whole stage, and the rewards that it wrote."""
    with tempfile.TemporaryDirectory() as directory:
        saved, out = Path(directory) / "saved", Path(directory) / "out"
        lineage = Lineage("eval", EVALUATION.version, {"task": ["math500"], "task_arg": []}, 0, "")
        with open_part(saved, 0, 1, lineage, EVALUATION) as part:
            part.write(table)
        start = time.perf_counter()
        regrading.run(regrading.Config(regrade=saved, out=out))
        seconds = time.perf_counter() - start
        return seconds, pq.ParquetFile(out / part.path.name).read(["reward"])


def peer_verdicts(table: pa.Table) -> Iterator[bool]:
    """Yield the verdicts of math-verify in this process, one response after the other."""
    from math_verify import parse, verify

    golds = {}
    for text, reference in zip(table["text"].to_pylist(), table["reference"].to_pylist(), strict=True):
        if reference not in golds:
            golds[reference] = parse(f"\\boxed{{{reference}}}")
        yield verify(golds[reference], parse(text))


def main(count: int = 100_000) -> float:
    """Print both rates; return their ratio, `spo` over math-verify (NaN without the MATH500 data)."""
    if not DATA.is_dir():
        print(f"needs MATH500 in {DATA}, which is not part of the project; skipped")
        return float("nan")
    random = np.random.default_rng(0)
    table = responses(count, random)
    seconds, graded = regrade_seconds(table)
    rewards = graded["reward"].to_pylist()
    print(f"spo eval --regrade: {count:,} responses in {seconds:.1f} s, {count / seconds:,.0f} answers/s")
    chosen = np.sort(random.choice(count, min(PEER, count), replace=False))
    start = time.perf_counter()
    verdicts = list(peer_verdicts(table.take(pa.array(chosen))))
    rate = len(verdicts) / (time.perf_counter() - start)
    agree = sum(verdict == (rewards[row] == 1) for verdict, row in zip(verdicts, chosen, strict=True))
    print(f"math-verify, one process: {rate:,.0f} answers/s over {len(verdicts):,}; verdicts agree on {agree:,}")
    print(f"ratio {count / seconds / rate:.1f}; ungradable {rewards.count(None):,}")
    return count / seconds / rate


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
