"""Compare one worker of Ray with one process, over whole iterations: `python -m tests.bench.bench_ray [pairs]`.

**Work.** rollout → segment → estimate → train, with the tiny policy on arithmetic with one operation: 256 questions, 4
responses each, 4 rollouts per state, 2 epochs. Both contestants write the same bytes, which is checked. Each iteration
starts with a pool without a model, as those of `spo run` do after training.

**Peer.** The same stages in this process alone. Ray and its worker run all the time: a run starts them once. What they
compute while the peer works is counted for Ray.

**Clock.** CPU seconds of this process and of all of Ray's processes, which other load hardly changes; wall seconds are
printed beside them and mean little on a busy machine, so the load is printed, too. Contestants alternate, and so does
the one that begins; a ratio is the median over pairs of the ratio within a pair.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import psutil

from stages import train
from stages.cluster.environment import open_session, prepare_environment
from stages.configs.execution import Cluster
from stages.core.progress import Silent
from stages.sampling.executors import remote_pool
from stages.sampling.pool import SamplerPool
from tests.chains import cut, sample, train_small_policy, value
from tests.shards.samples import files

PAIRS = 5


@dataclass(frozen=True)
class Seconds:
    """What an iteration took, in seconds."""

    cpu: float
    wall: float


def iterate(out: Path, policy: Path, pool: SamplerPool) -> None:
    """Run the stages of an iteration."""
    sampling: dict[str, Any] = {"num_questions": 256, "num_generations": 4, "max_tokens": 64}
    sample(out / "trajectories", policy, pool=pool, **sampling)
    cut(out / "cutpoints", out / "trajectories", interval=2)
    value(out / "advantages", out / "cutpoints", pool=pool)
    pool.free_memory()
    learning: dict[str, Any] = {"epochs": 2, "per_device_batch_size": 32, "gradient_accumulation_steps": 1}
    train.run(train.Config(advantages=(out / "advantages",), out=out / "checkpoint", threads=1, **learning))


def processor_seconds() -> float:
    """Return the CPU seconds of this process and of its descendants that run."""
    total = time.process_time()
    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it may end
            times = one.cpu_times()
            total += times.user + times.system
    return total


def clock(work: Callable[[], None]) -> Seconds:
    """Return what a call takes."""
    cpu, wall = processor_seconds(), time.monotonic()
    work()
    return Seconds(processor_seconds() - cpu, time.monotonic() - wall)


def artefacts(out: Path) -> dict[str, bytes]:
    """Return the files of an iteration, except the metrics, which contain durations."""
    return {name: content for name, content in files(out).items() if not name.endswith("metrics.jsonl")}


def main() -> None:
    """Print the seconds of each pair, and the ratios."""
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else PAIRS
    prepare_environment(Cluster())  # before a library imports Ray
    with tempfile.TemporaryDirectory(prefix="ray-") as name:
        folder = Path(name)
        policy = train_small_policy(folder / "policy")
        with (
            open_session(Cluster(samplers=1), folder / "logs", Silent()) as session,
            remote_pool(session) as worker,
            SamplerPool() as process,
        ):
            pools = {"one worker": worker, "one process": process}
            for contestant, pool in pools.items():  # the first calls load libraries
                iterate(folder / "warm" / contestant, policy, pool)
            found: list[dict[str, Seconds]] = []
            for number in range(pairs):
                order = list(pools)[:: -1 if number % 2 else 1]
                outs = {contestant: folder / str(number) / contestant / "iteration" for contestant in order}
                took = {
                    contestant: clock(lambda one=contestant, outs=outs: iterate(outs[one], policy, pools[one]))
                    for contestant in order
                }
                mine, other = (artefacts(outs[contestant]) for contestant in pools)
                assert mine == other, "the worker writes other bytes"
                found.append(took)
                figures = "; ".join(f"{one}: {took[one].cpu:.2f} CPU s, {took[one].wall:.1f} s" for one in pools)
                print(f"  {figures}; load {os.getloadavg()[0]:.1f}", flush=True)
    for clock_name in ("cpu", "wall"):
        ratios = [getattr(one["one worker"], clock_name) / getattr(one["one process"], clock_name) for one in found]
        print(
            f"  {clock_name} seconds of one worker / one process: {median(ratios):.3f} (target: at most 1.05), ", end=""
        )
        print(f"pairs {' '.join(f'{ratio:.3f}' for ratio in sorted(ratios))}")


if __name__ == "__main__":
    main()
