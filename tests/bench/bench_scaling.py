"""Predict how stages scale with samplers, and compare with 2 workers of Ray: `python -m tests.bench.bench_scaling`.

**Rates** (CPU seconds, one thread). A model of 2 layers and width 64 that writes responses of uneven length (as in
`bench_sampling`) in the embedded engine: a + b·B for a step over B rows, fitted to 1, 8, 64 and 256 rows that never
end. Grading: `arithmetic`. Writing: chunks of 512 rows. A unit: an empty call of a worker.

**Lengths.** Those of the responses that this model draws, at most 256 tokens.

**Prediction and measurement.** 96 prompts, 8 responses each, in chunks of 24 prompts, on one and on two workers of a
real Ray. Clock: CPU seconds of the worker that computed longest, which other load on the machine hardly changes; wall
seconds are printed beside it. The prediction is the simulation's time for the lengths that were drawn.

**Simulation** (`tests.bench.scaling`) of 1, 8, 64 and 512 samplers with these rates and lengths: 8 responses to each of
1,024 questions; 9 rollouts from every tenth token of 8 responses to each of 128 questions; 6-6-6 trees with segments of
32 tokens for 128 questions. Chunks and units are those of the stages, except where the size of units varies.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from numpy.typing import NDArray

from stages.cluster.environment import open_session, prepare_environment
from stages.configs.execution import Cluster
from stages.core.progress import Silent
from stages.maths.randomness import random_key
from stages.models.presets import make_byte_tokenizer
from stages.responses.grading import grade
from stages.sampling.embedded.engine import TransformersSampler
from stages.sampling.executors import overlap
from stages.sampling.protocol import Request, SamplingParams
from stages.tasks import open_task
from tests.bench.bench_sampling import END, MAX_TOKENS, MODELS, document, learn
from tests.bench.scaling import Chunk, Layout, Rates, simulate

ROWS = 256  # of the embedded engine on a CPU
QUESTIONS, RESPONSES, CHUNK = 96, 8, 24
WORKERS = (1, 8, 64, 512)
UNIT = 256  # `stages.sampling.ray.sampler.LEAST_SAMPLES`, which imports Ray
LEAST = (1, 4, 16, 64, UNIT)


def measure_rates(model: Any, repeats: int) -> Rates:
    """Return the rates of this machine."""
    engine = TransformersSampler(model, make_byte_tokenizer())
    engine.is_end[:] = False
    prompt, steps = np.arange(65, 105, dtype=np.int32), 48
    rows, seconds = [1, 8, 64, 256], []
    for count in rows:
        request = Request(prompt, tuple(random_key("rates", i) for i in range(count)), steps)
        seconds.append(median(timed(engine.sample, [request], SamplingParams(temperature=2.0)) for _ in range(repeats)))
    row, step = map(float, np.polyfit(rows, np.array(seconds) / steps, 1))
    task = open_task("arithmetic", None, ())
    responses = [np.frombuffer(b"B+5=8.#8", np.uint8).astype(np.int32)] * 512
    arguments = (make_byte_tokenizer(), task, responses, ["stop"] * 512, ["8"] * 512)
    return Rates(step, row, grade=timed(grade, *arguments) / 512, commit=measure_commit())


def timed(function: Any, *arguments: Any) -> float:
    """Return the CPU seconds of a call."""
    began = time.process_time()
    function(*arguments)
    return time.process_time() - began


def measure_commit() -> float:
    """Return the CPU seconds of writing a chunk of 512 rows."""
    from tests.shards.samples import trajectories, write_part

    with tempfile.TemporaryDirectory() as name:
        table = trajectories(2048)
        return timed(lambda: write_part(Path(name), table=table, chunk=512)) / 4


def process_seconds(workspace: Any, report: Any) -> float:
    return time.process_time()


def measure_workers(directory: Path, chunks: Sequence[Chunk], count: int) -> tuple[float, float, dict[int, int], float]:
    """Sample on real workers.

    Returns:
      CPU seconds of the worker that computed longest; wall seconds; the length of each sample by its key; and CPU
      seconds of an empty call of a worker.
    """
    from stages.sampling.ray.sampler import RaySampler  # imports Ray

    options: dict[str, Any] = {"engine": "transformers", "device": "cpu", "dtype": "float32", "threads": 1}
    lengths: dict[int, int] = {}
    with open_session(Cluster(samplers=count), directory.parent / "logs", Silent()) as session:
        sampler = RaySampler(session, directory, options)
        sampler.sample(chunks[0][0], SamplingParams())  # the first call of an engine checks it against the plain model
        before, began = sampler.crew.everywhere(process_seconds), time.monotonic()
        for chunk, (samples, _) in overlap(sampler, chunks, lambda one: sampler.sample(one[0], SamplingParams())):
            for request, drawn in zip(chunk[0], samples, strict=True):
                lengths |= {key: len(one.token_ids) for key, one in zip(request.keys, drawn, strict=True)}
        wall = time.monotonic() - began
        last = after = sampler.crew.everywhere(process_seconds)
        for _ in range(20):
            last = sampler.crew.everywhere(process_seconds)
        each = max(b - a for a, b in zip(after, last, strict=True)) / 20
        sampler.close()
    return max(b - a for a, b in zip(before, after, strict=True)), wall, lengths, each


def compare(directory: Path, rates: Rates) -> tuple[Rates, NDArray[np.int64]]:
    """Print prediction and measurement for 1 and 2 workers; return the rates with that of a unit, and the lengths."""
    random = np.random.default_rng(1)
    prompts = [np.frombuffer(document(random)[0], np.uint8).astype(np.int32) for _ in range(QUESTIONS)]
    names = [[random_key("scaling", i, j) for j in range(RESPONSES)] for i in range(QUESTIONS)]
    requests = [Request(prompt, tuple(keys), MAX_TOKENS) for prompt, keys in zip(prompts, names, strict=True)]
    chunks = [[requests[i : i + CHUNK]] for i in range(0, QUESTIONS, CHUNK)]
    index = {key: number for number, key in enumerate(key for keys in names for key in keys)}
    numbered = [[[replace(r, keys=tuple(index[key] for key in r.keys)) for r in call] for call in c] for c in chunks]
    measured, walls, predicted = [], [], []
    lengths = np.zeros(len(index), np.int64)
    for count in (1, 2):
        seconds, wall, drawn, each = measure_workers(directory, chunks, count)
        lengths = np.array([drawn[key] for key in index], np.int64)
        rates = replace(rates, unit=each)
        plain = replace(rates, grade=0.0, commit=0.0)  # the workers alone are measured
        outcome = simulate(numbered, lengths, Layout(count, count, UNIT, ROWS), plain)
        measured, walls, predicted = [*measured, seconds], [*walls, wall], [*predicted, outcome.seconds]
        print(f"  {count} workers: {seconds:.2f} s measured (wall {wall:.1f} s), {outcome.seconds:.2f} s predicted")
    speedups = predicted[0] / predicted[1], measured[0] / measured[1]
    print(f"  speed-up of 2 workers: {speedups[0]:.2f} predicted, {speedups[1]:.2f} measured: ", end="")
    print(f"{speedups[0] / speedups[1] - 1:+.0%} (target: within 15 %); by wall time {walls[0] / walls[1]:.2f}")
    return rates, lengths


class Workload:
    """Chunks of calls with drawn lengths, for the simulation."""

    def __init__(self, measured: NDArray[np.int64]) -> None:
        self._measured = np.sort(measured)
        self._random = np.random.default_rng(0)
        self._drawn: list[int] = []

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.array(self._drawn, np.int64)

    def request(self, question: int, state: int, after: int, samples: int, most: int = MAX_TOKENS) -> Request:
        """Return samples from a state `after` tokens behind a prompt: what is left of measured responses."""
        first = int(np.searchsorted(self._measured, after, "right"))
        picked = self._random.integers(min(first, self._measured.size - 1), self._measured.size, samples)
        keys = tuple(range(len(self._drawn), len(self._drawn) + samples))
        self._drawn += np.clip(self._measured[picked] - after, 1, most).tolist()
        return Request(np.array([question, state], np.int32), keys, most, text_start=1)

    def rollout(self, questions: int) -> list[Chunk]:
        """Return chunks of 64 questions with 8 responses each."""
        requests = [self.request(question, 0, 0, RESPONSES) for question in range(questions)]
        return [[requests[i : i + 64]] for i in range(0, questions, 64)]

    def chain(self, questions: int) -> list[Chunk]:
        """Return chunks of 64 responses, with 9 rollouts from every tenth token of each."""
        responses = self._random.choice(self._measured, questions * RESPONSES)
        states = [
            [self.request(i // RESPONSES, 256 * (i % RESPONSES) + at, at, 9) for at in range(0, length, 10)]
            for i, length in enumerate(responses.tolist())
        ]
        return [[list(chain.from_iterable(states[i : i + 64]))] for i in range(0, len(states), 64)]

    def trees(self, questions: int) -> list[Chunk]:
        """Return chunks of 64 questions with 6-6-6 trees: a call per level, from the nodes that have not ended."""
        chunks: list[Chunk] = []
        for first in range(0, questions, 64):
            level = [self.request(question, 0, 0, 6, 32) for question in range(first, first + 64)]
            calls = [level]
            for depth, most in ((1, 32), (2, MAX_TOKENS)):
                open_nodes = [(r.prefix[0], key) for r in level for key in r.keys if self._drawn[key] == 32]
                level = [self.request(int(question), key, 32 * depth, 6, most) for question, key in open_nodes]
                calls.append(level)
            chunks.append(calls)
        return chunks


def predict(rates: Rates, measured: NDArray[np.int64]) -> None:
    """Print the simulated speed-up, efficiency, limit and best size of units for each stage and number of samplers."""
    works = {"rollout": ("rollout", 1024), "chain": ("chain", 128), "trees": ("trees", 128)}
    for name, (method, questions) in works.items():
        work = Workload(measured)
        chunks = getattr(work, method)(questions)
        lengths = work.lengths
        print(f"  {name}: {lengths.size:,} samples, {lengths.sum():,} tokens in {len(chunks)} chunks")
        one = simulate(chunks, lengths, Layout(1, 1, UNIT, ROWS), rates).seconds
        for count in WORKERS:
            layouts = {least: Layout(count, min(count, 16), least, ROWS) for least in LEAST}
            outcomes = {least: simulate(chunks, lengths, layout, rates) for least, layout in layouts.items()}
            found, best = outcomes[UNIT], min(LEAST, key=lambda least: outcomes[least].seconds)
            sizes = "  ".join(f"{least}: {one / outcome.seconds:.1f}" for least, outcome in outcomes.items())
            print(
                f"    {count:>4} samplers: {found.seconds:8.2f} s, speed-up {one / found.seconds:6.1f} "
                f"({one / found.seconds / count:.0%}), limit: {found.limit}; by size of units {sizes}; best {best}"
            )


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    torch.set_num_threads(1)
    prepare_environment(Cluster())  # before a library imports Ray
    layers, width, heads, rate, steps, _ = MODELS["tiny: 2 layers, width 64"]
    model = learn(layers, width, heads, rate, steps)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "model"
        model.save_pretrained(directory)
        make_byte_tokenizer().save_pretrained(directory)
        assert model.config.eos_token_id == END
        rates = measure_rates(model, repeats)
        rates, lengths = compare(directory, rates)
    spread = f"{lengths.mean():.0f} ± {lengths.std():.0f} tokens, longest {lengths.max()}"
    print(f"  lengths {spread}; {rates}")
    predict(rates, lengths)


if __name__ == "__main__":
    main()
