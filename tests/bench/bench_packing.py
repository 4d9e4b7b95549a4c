"""Training on trees beside the released code's way: `python -m tests.bench.bench_packing [repeats]`.

The released code trains every segment of a tree as a sequence of its own, its whole prefix again in front; that is our
`--no-packing` (`batches.padded`), sorted by length so that it pads little. Ours packs what segments begin with
(`packing.packed`). Both take the same steps, all else being equal: the first two of the batches of 128 segments that
`spo train` plans (siblings side by side) from three 6-6-6 trees, 774 segments; 8 segments a pass or as many tokens,
forward, backward and optimiser: `optimisation.update`, everything in it counted.

Prompts have 60 tokens, segments 30, those of the last level 15 to 45 (they run to the end). The larger model is of the
Qwen2 architecture, width 192, 6 layers, vocabulary 5,000; the smaller one the `tiny` preset's, with prompts of 13 and
segments of 13 tokens, as in the built-in task. float32, one thread, beta 0. The two ways alternate in one process;
medians of CPU seconds (one thread: wall seconds of an idle core). With `mask=all` every token of a segment is trained,
with `mask=cutpoints` a random 20 % of them. Tokens fed count padding.
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
    """Every segment of a tree: its name, that of its parent, and what is trained."""
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


def measure(what: str, sizes: tuple[int, int, int, int], prompt: int, length: int, keep: float, repeats: int) -> None:
    """Prints tokens fed per trained token and seconds, both ways."""
    vocabulary, width, layers, heads = sizes
    random = np.random.default_rng(0)
    trees = [make_tree(random, vocabulary, prompt, length, keep, question) for question in range(QUESTIONS)]
    names, parents, examples = zip(*(segment for tree in trees for segment in tree), strict=True)
    plan = plan_batches(names, seed=0, epochs=1, size=BATCH, groups=parents)
    batches = [[examples[index] for index in batch] for batch in plan[:STEPS]]
    ways: dict[str, Layout] = {"whole prefix again": padded, "packed": packed}
    engines = {way: TorchEngine(make_model(vocabulary, width, layers, heads, tied=True)) for way in ways}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    fed = dict.fromkeys(ways, 0.0)
    for repeat in range(repeats + 1):  # the first one warms up
        for way, layout in ways.items():
            began = time.process_time()
            lines = [update(engines[way], batch, Objective(beta=0.0), SIZE, RATE, layout) for batch in batches]
            if repeat:
                seconds[way].append(time.process_time() - began)
            fed[way] = sum(line["tokens/fed"] for line in lines) / sum(line["tokens/trained"] for line in lines)
    plain, ours = (median(seconds[way]) for way in ways)
    print(f"{what}: {STEPS} steps of {BATCH} segments")
    for way, taken in zip(ways, (plain, ours), strict=True):
        print(f"  {way:<20} {fed[way]:6.2f} tokens fed per trained token  {taken:6.2f} s")
    more, less = fed.values()
    print(f"  packed feeds {more / less:.2f}x fewer tokens, takes {plain / ours:.2f}x less time")


def main(repeats: int = 3) -> None:
    torch.set_num_threads(1)
    for keep, mask in ((1.0, "all"), (0.2, "cutpoints")):
        measure(f"6-6-6, width 192, mask={mask}", (5_000, 192, 6, 3), 60, 30, keep, repeats)
        measure(f"6-6-6, tiny, mask={mask}", (258, 64, 2, 2), 13, 13, keep, repeats)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
