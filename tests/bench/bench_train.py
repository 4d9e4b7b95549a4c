"""Compare the train step with TRL and with full logits: `python -m tests.bench.bench_train [steps]`.

**Speed**, against TRL's GRPOTrainer on the same batch: 32 responses to 8 prompts, lengths uneven (prompts 30–90 tokens,
responses 20–400, mean 180), the same model (Qwen2 architecture, width 192, 6 layers, vocabulary 5,000, tied: the head
has 28 % of the weights, as in Qwen2.5-0.5B), float32, one thread, 8 sequences a pass, 4 passes a step, fused AdamW,
beta 0, gradient checkpointing off (spo's default) and on (TRL's). TRL runs `trainer.train()` with
`_generate_single_turn` replaced by one that returns the given completions; its clock runs from `on_step_begin` to
`on_step_end`, less all the time in `_generate_and_score_completions` (generation, rewards, padding), so forward,
backward and optimizer alone are counted. `spo` is measured by `optimization.step.update` as a whole. Neither scores old
log-probabilities: with one step per batch, both use the current ones. The steps of all contestants alternate in one
process; medians of CPU seconds (one thread: wall seconds of an idle core). Tokens are counted over prompts and
responses, without padding. With `mask=all` both train every response token, which is the same work; with the
probability mask `spo` trains a random 20 % of them, as SPO does. TRL computes its own advantages from given rewards;
time does not depend on their values.

**Memory**, against full logits: vocabulary 151,936, width 64, 2 layers, tied; 16 sequences of 256 tokens in one
pass, the last 192 of each the response, a random 20 % of them kept; two whole steps with AdamW. Full logits means
`model(...).logits`, then `gather − logsumexp` row by row (no second [B, T, V] copy in the forward pass), then masks.
Each variant runs in its own process. The peak is the high-water mark of resident memory (VmHWM) minus the memory
resident before the first step, when model, optimizer and batch exist. The absolute peak is printed beside it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

if TYPE_CHECKING:
    from stages.optimization.batches import Example
    from stages.optimization.torch import TorchEngine

PROMPTS, GENERATIONS, SIZE = 8, 4, 8
KEPT = 0.2
RATE = 1e-6


def make_model(vocabulary: int, width: int, layers: int, heads: int, tied: bool) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=width * 11 // 4,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=1024,
            tie_word_embeddings=tied,
            eos_token_id=256,
            pad_token_id=257,
        )
    )


def make_batch(random: np.random.Generator, vocabulary: int) -> list[tuple[str, list[int]]]:
    """Return 32 pairs of a prompt (text, one token per byte) and a completion (token ids)."""
    pairs = []
    for _ in range(PROMPTS):
        prompt = "".join(chr(97 + letter) for letter in random.integers(26, size=random.integers(30, 91)))
        for _ in range(GENERATIONS):
            length = int(np.clip(random.lognormal(4.8, 0.7), 20, 400))
            pairs.append((prompt, random.integers(258, vocabulary, size=length).tolist()))
    return pairs


def make_examples(pairs: list[tuple[str, list[int]]], random: np.random.Generator, keep: float) -> list[Example]:
    from stages.optimization.batches import Example

    examples = []
    for prompt, completion in pairs:
        kept = len(prompt) + np.flatnonzero(random.random(len(completion)) < keep)
        tokens = np.array([*prompt.encode(), *completion], np.int32)
        advantages = np.full(kept.size, random.normal())
        examples.append(Example(tokens, kept, advantages, response_tokens=len(completion), reward=0.0))
    return examples


def measure_speed(steps: int) -> None:
    """Print seconds per step of all contestants; each takes one step after each step of TRL."""
    from stages.optimization.objective import Objective
    from stages.optimization.step import update
    from stages.optimization.torch import TorchEngine

    vocabulary = 5_000
    random = np.random.default_rng(0)
    pairs = make_batch(random, vocabulary)
    tokens = sum(len(prompt) + len(completion) for prompt, completion in pairs)

    def ours(keep: float, checkpointing: bool) -> tuple[TorchEngine, list[Example]]:
        model = make_model(vocabulary, 192, 6, 3, tied=True)
        return TorchEngine(model, gradient_checkpointing=checkpointing), make_examples(pairs, random, keep)

    for checkpointing in (False, True):
        contestants = {"mask=all": ours(1.0, checkpointing), "mask=cutpoints": ours(KEPT, checkpointing)}
        seconds: dict[str, list[float]] = {name: [] for name in contestants}

        def take_turns(
            contestants: dict[str, tuple[TorchEngine, list[Example]]] = contestants,
            seconds: dict[str, list[float]] = seconds,
        ) -> None:
            for name, (engine, examples) in contestants.items():
                began = time.process_time()
                update(engine, examples, Objective(beta=0.0), SIZE, RATE)
                seconds[name].append(time.process_time() - began)

        model = make_model(vocabulary, 192, 6, 3, tied=True)
        trl = median(run_trl(model, pairs, steps + 1, checkpointing, take_turns)[1:])  # the first step is warm-up
        print(f"train step, {len(pairs)} trajectories, {tokens:,} tokens, gradient checkpointing {checkpointing}")
        print(f"  TRL GRPOTrainer      {trl:6.2f} s  {tokens / trl:8,.0f} tokens/s")
        for name, times in seconds.items():
            taken = median(times[1:])
            print(f"  spo {name:<16} {taken:6.2f} s  {tokens / taken:8,.0f} tokens/s  {trl / taken:5.2f}x")


def run_trl(
    model: Any, pairs: list[tuple[str, list[int]]], steps: int, checkpointing: bool, between: Any
) -> list[float]:
    """Return the CPU seconds of each optimizer step of TRL; call `between` after each."""
    from datasets import Dataset  # pyright: ignore[reportMissingImports] -- the extra `bench`
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports] -- the extra `bench`

    from stages.models.presets import make_byte_tokenizer

    taken: list[float] = []
    began, scoring = 0.0, 0.0

    class Clock(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            nonlocal began, scoring
            began, scoring = time.process_time(), 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            taken.append(time.process_time() - began - scoring)
            between()

    class OfflineTrainer(GRPOTrainer):
        """TRL's trainer with generation replaced by the given completions."""

        def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
            waiting: dict[str, list[list[int]]] = {}
            for prompt, completion in pairs:
                waiting.setdefault(prompt, []).append(completion)
            return [waiting[bytes(ids).decode()].pop() for ids in prompt_ids], None

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            nonlocal scoring
            start = time.process_time()
            result = super()._generate_and_score_completions(inputs)
            scoring += time.process_time() - start
            return result

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        return [float(ids[0] % 2) for ids in completion_ids]

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=SIZE,
            gradient_accumulation_steps=len(pairs) // SIZE,
            num_generations=GENERATIONS,
            max_completion_length=400,
            beta=0.0,
            learning_rate=RATE,
            max_steps=steps,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=checkpointing,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            log_level="error",
        )
        trainer = OfflineTrainer(
            model=model,
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": sorted({prompt for prompt, _ in pairs})}),
            processing_class=make_byte_tokenizer(),
            callbacks=[Clock()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return taken


def memory_step(variant: str) -> None:
    """Take two steps of one variant, in a process of its own; print resident bytes before them and at the peak."""
    from stages.optimization.batches import Example
    from stages.optimization.objective import Objective
    from stages.optimization.step import update
    from stages.optimization.torch import TorchEngine

    vocabulary, rows, length, prompt = 151_936, 16, 256, 64
    random = np.random.default_rng(0)
    model = make_model(vocabulary, 64, 2, 2, tied=True)
    examples = []
    for _ in range(rows):
        kept = prompt + np.flatnonzero(random.random(length - prompt) < KEPT)
        tokens = random.integers(vocabulary, size=length).astype(np.int32)
        examples.append(Example(tokens, kept, np.full(kept.size, random.normal()), response_tokens=length - prompt))
    engine = TorchEngine(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    before = resident("VmRSS")
    for _ in range(2):
        if variant == "masked":
            update(engine, examples, Objective(beta=0.0), rows, RATE)
        else:
            full_logits_step(model, optimizer, examples)
    print(before, resident("VmHWM"))


def full_logits_step(model: Any, optimizer: torch.optim.Optimizer, examples: list[Example]) -> None:
    """Take the same step with logits of every position; the ratio is 1, so the surrogate's gradient is A ∇log π."""
    from stages.maths.statistics import whiten

    ids = torch.from_numpy(np.stack([example.tokens for example in examples])).long()
    weights = torch.zeros(ids.shape)
    whitened = whiten(np.concatenate([example.advantages for example in examples]))
    flat = torch.from_numpy(np.concatenate([row * ids.shape[1] + e.kept for row, e in enumerate(examples)]))
    weights.view(-1)[flat] = torch.from_numpy(whitened).float()
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    chosen = logits.gather(-1, ids[:, 1:, None]).squeeze(-1)
    logprobs = chosen - torch.stack([row.logsumexp(-1) for row in logits])
    ratio = (logprobs - logprobs.detach()).exp()
    advantages = weights[:, 1:]
    loss = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).sum() / flat.numel()
    del logits, chosen
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def resident(what: str) -> int:
    """Return the resident memory of this process in bytes: VmRSS is the current value, VmHWM the peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def measure_memory() -> None:
    """Print the peak memory of both variants, each in a process of its own."""
    peaks = {}
    for variant in ("full", "masked"):
        command = [sys.executable, "-m", "tests.bench.bench_train", "--memory", variant]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        before, peak = int(output[-2]), int(output[-1])
        peaks[variant] = peak - before
        print(f"  {variant:<8} peak above the start {peaks[variant] / 2**20:7,.0f} MiB  (absolute {peak / 2**20:,.0f})")
    print(f"  masked head: {peaks['masked'] / peaks['full']:.1%} of the memory of full logits")


def main(steps: int = 3) -> None:
    torch.set_num_threads(1)
    measure_speed(steps)
    print("peak memory of a train step, vocabulary 151,936, 16 x 256 tokens, 20 % of the response kept")
    measure_memory()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        torch.set_num_threads(1)
        memory_step(sys.argv[2])
    else:
        main(*map(int, sys.argv[1:2]))
