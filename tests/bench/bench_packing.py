"""Compare packed training on trees with the released code's layout: `python -m tests.bench.bench_packing [repeats]`.

The released code trains each segment of a tree as a separate sequence with its whole prefix in front. This is option
`--no-packing` (`batches.padded`), which sorts by length to reduce padding. The packed layout (`packing.packed`) feeds
each shared prefix once. Both take the same steps: the first two batches of 128 segments that `spo train` plans
(siblings side by side) from three 6-6-6 trees, 774 segments; 8 segments per pass, or as many tokens. Measured is
`optimization.step.update` as a whole: forward pass, backward pass and optimizer.

Prompts have 60 tokens, segments 30, and segments of the last level 15 to 45 (they run to the end). The larger model has
the Qwen2 architecture, width 192, 6 layers, vocabulary 5,000; the smaller one is the `tiny` preset with prompts and
segments of 13 tokens, as in the built-in task. float32, one thread, beta 0. The two layouts alternate in one process;
medians of CPU seconds (one thread: wall seconds of an idle core). `mask=all` trains every token of a segment,
`mask=cutpoints` a random 20 % of them. Forward tokens include padding.
"""

from __future__ import annotations

import os
import sys
import time
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

from stages.optimization.batches import Example, Layout, padded
from stages.optimization.objective import Objective
from stages.optimization.packing import packed
from stages.optimization.step import update
from stages.optimization.torch import TorchEngine
from stages.training.steps import plan_batches
from tests.bench.bench_train import make_model

SHAPE, QUESTIONS, BATCH, STEPS, SIZE = (6, 6, 6), 3, 128, 2, 8
RATE = 1e-6


def make_tree(
    random: np.random.Generator, vocabulary: int, prompt: int, length: int, keep: float, question: int
) -> list[tuple[str, str, Example]]:
    """Return every segment of a tree: its name, its parent's name, and its example."""
    found: list[tuple[str, str, Example]] = []

    def grow(path: np.ndarray, name: str, depth: int) -> None:
        for child in range(SHAPE[depth]):
            last = depth == len(SHAPE) - 1
            size = int(random.integers(length // 2, length * 3 // 2 + 1)) if last else length
            tokens = np.concatenate([path, random.integers(vocabulary, size=size)]).astype(np.int32)
            kept = path.size + np.flatnonzero(random.random(size) < keep)
            example = Example(tokens, kept, random.normal(size=kept.size), response_tokens=size)
            found.append((f"{name}{child}", name, example))
            if not last:
                grow(tokens, f"{name}{child}.", depth + 1)

    grow(random.integers(vocabulary, size=prompt), f"q{question}/", 0)
    return found


def measure(title: str, sizes: tuple[int, int, int, int], prompt: int, length: int, keep: float, repeats: int) -> None:
    """Print forward tokens per trained token, and seconds, of both layouts."""
    vocabulary, width, layers, heads = sizes
    random = np.random.default_rng(0)
    trees = [make_tree(random, vocabulary, prompt, length, keep, question) for question in range(QUESTIONS)]
    names, parents, examples = zip(*(segment for tree in trees for segment in tree), strict=True)
    plan = plan_batches(names, seed=0, epochs=1, size=BATCH, groups=parents)
    batches = [[examples[index] for index in batch] for batch in plan[:STEPS]]
    layouts: dict[str, Layout] = {"separate sequences": padded, "packed": packed}
    engines = {name: TorchEngine(make_model(vocabulary, width, layers, heads, tied=True)) for name in layouts}
    seconds: dict[str, list[float]] = {name: [] for name in layouts}
    forward_tokens = dict.fromkeys(layouts, 0.0)
    for repeat in range(repeats + 1):  # the first one warms up
        for name, layout in layouts.items():
            began = time.process_time()
            lines = [update(engines[name], batch, Objective(beta=0.0), SIZE, RATE, layout) for batch in batches]
            if repeat:
                seconds[name].append(time.process_time() - began)
            trained = sum(line["tokens/trained"] for line in lines)
            forward_tokens[name] = sum(line["tokens/fed"] for line in lines) / trained
    separate, shared = (median(seconds[name]) for name in layouts)
    print(f"{title}: {STEPS} steps of {BATCH} segments")
    for name, taken in zip(layouts, (separate, shared), strict=True):
        print(f"  {name:<20} {forward_tokens[name]:6.2f} forward tokens per trained token  {taken:6.2f} s")
    more, less = forward_tokens.values()
    print(f"  packed: {more / less:.2f}x fewer forward tokens, {separate / shared:.2f}x less time")


def main(repeats: int = 3) -> None:
    torch.set_num_threads(1)
    for keep, mask in ((1.0, "all"), (0.2, "cutpoints")):
        measure(f"6-6-6, width 192, mask={mask}", (5_000, 192, 6, 3), 60, 30, keep, repeats)
        measure(f"6-6-6, tiny, mask={mask}", (258, 64, 2, 2), 13, 13, keep, repeats)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
