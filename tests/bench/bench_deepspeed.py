"""Compare DeepSpeed on one rank with the torch engine: `python -m tests.bench.bench_deepspeed [steps]`.

The difference is the overhead of DeepSpeed, because one rank has nothing to partition. The step is the one of
`bench_train` with `mask=cutpoints` (32 responses to 8 prompts, Qwen2 architecture of width 192 and 6 layers, float32,
one thread, 8 sequences per pass, 4 passes per step): `optimization.step.update` as a whole, at each ZeRO stage. The
engines take their steps in turn in one process, from the same weights; medians of CPU seconds without the first step.
The last losses must agree.
"""

from __future__ import annotations

import os
import sys
import time
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import numpy as np
import torch

from stages.core.launcher import Launch
from stages.optimization.deepspeed import DeepSpeedEngine
from stages.optimization.objective import Objective
from stages.optimization.optimizer import DEFAULT_ADAMW
from stages.optimization.ranks import join
from stages.optimization.step import Engine, update
from stages.optimization.torch import TorchEngine
from stages.optimization.zero import DeepSpeedSettings
from tests.bench.bench_train import KEPT, SIZE, make_batch, make_examples, make_model

VOCABULARY = 5_000
RATE = 1e-4


def main(steps: int = 5) -> None:
    """Print seconds per step of each engine."""
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    examples = make_examples(make_batch(random, VOCABULARY), random, KEPT)
    ranks, cpu = join(Launch(), "cpu"), torch.device("cpu")

    def make_policy() -> TorchEngine:
        return TorchEngine(make_model(VOCABULARY, 192, 6, 3, tied=True))

    engines: dict[str, Engine] = {"torch": make_policy()}
    for stage in range(4):
        engines[f"ZeRO {stage}"] = DeepSpeedEngine(make_policy(), DEFAULT_ADAMW, DeepSpeedSettings(stage), ranks, cpu)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    losses: dict[str, float] = {}
    for _ in range(steps + 1):
        for name, engine in engines.items():
            began = time.process_time()
            losses[name] = update(engine, examples, Objective(beta=0.0), SIZE, RATE, ranks=ranks)["loss"]
            seconds[name].append(time.process_time() - began)
    assert all(abs(loss - losses["torch"]) < 1e-5 for loss in losses.values()), losses
    torch_seconds = median(seconds["torch"][1:])
    for name, times in seconds.items():
        taken = median(times[1:])
        print(f"  {name:<8} {taken:6.2f} s per step  {taken / torch_seconds:5.2f}x")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
