"""Compare sampling with `model.generate`: `python -m tests.bench.bench_sampling [repeats]`.

**Work.** Two Qwen2 models over bytes: the `tiny` preset, and one of 4 layers and width 256. Both learn for a moment to
write responses of uneven length: sentences that count down by their first letter, and the end of the text after the
last one (the mean length is printed, with its standard deviation). *Monte Carlo*: each of a set of prompts is answered
once by the model itself; then 9 rollouts are drawn from the prompt and from every 10th position of each answer, as
`spo estimate` does. *Plain*: 8 responses to each prompt. Temperature 1, at most 256 tokens, every sample ends at its
own end-of-text token; tokens after it are not counted.

**Peer.** transformers' `generate` on the same prompts, each repeated, sorted by length, left-padded, in batches of 32,
64 and 128 rows; its best batch size counts. `spo` returns log-probabilities as well, `generate` does not.

**Clock.** CPU seconds of this process (one thread: the wall seconds of an idle core). Contestants alternate; a ratio
is the ratio of medians over the repeats.
"""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from torch.nn import functional as F

from stages.maths.randomness import random_key
from stages.models.presets import make_byte_tokenizer
from stages.sampling.embedded.engine import TransformersSampler
from stages.sampling.protocol import Request, SamplingParams

END, PAD = 256, 257
MAX_TOKENS = 256
BATCHES = (32, 64, 128)
MODELS = {  # layers, width, heads, learning rate, learning steps, prompts
    "tiny: 2 layers, width 64": (2, 64, 2, 3e-3, 240, 24),
    "4 layers, width 256": (4, 256, 4, 1e-3, 100, 8),
}


def document(random: np.random.Generator) -> tuple[bytes, bytes]:
    """Return a prompt of 20–60 letters, and a response: `E….D….C….B….A….`, 1–8 sentences of 7–18 letters."""
    sentences = int(np.clip(random.lognormal(1.4, 0.5), 1, 8))
    parts = [b"%c%s." % (64 + left, letters(random, 6, 18)) for left in range(sentences, 0, -1)]
    return letters(random, 20, 60) + b"\n", b"".join(parts)


def letters(random: np.random.Generator, least: int, most: int) -> bytes:
    return random.integers(97, 123, random.integers(least, most), dtype=np.uint8).tobytes()


def learn(layers: int, width: int, heads: int, rate: float, steps: int) -> Any:
    """Train a model on enough documents that its responses end like theirs."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    random = np.random.default_rng(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=258,
            hidden_size=width,
            intermediate_size=width * 5 // 2,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=END,
            pad_token_id=PAD,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98))
    for _ in range(steps):
        texts = [torch.tensor([*prompt, *response, END]) for prompt, response in (document(random) for _ in range(16))]
        ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=PAD)
        targets = ids[:, 1:].masked_fill(ids[:, 1:] == PAD, -100)
        loss = F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), targets.flatten())  # pyright: ignore[reportCallIssue]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def states_of(engine: TransformersSampler, prompts: list[np.ndarray]) -> list[np.ndarray]:
    """Return every prompt, and every 10th state of the model's own answer to it."""
    results, _ = engine.sample(
        [Request(p, (random_key(i),), MAX_TOKENS) for i, p in enumerate(prompts)], SamplingParams()
    )
    wholes = [np.concatenate([p, answer.token_ids[:-1]]) for p, (answer,) in zip(prompts, results, strict=True)]
    return [
        whole[:length]
        for prompt, whole in zip(prompts, wholes, strict=True)
        for length in range(len(prompt), len(whole) + 1, 10)
    ]


def sample(engine: TransformersSampler, prefixes: list[np.ndarray], samples: int, repeat: int) -> list[int]:
    """Return the lengths of the samples of `spo`."""
    keys = [tuple(random_key(repeat, i, j) for j in range(samples)) for i in range(len(prefixes))]
    requests = [Request(prefix, key, MAX_TOKENS) for prefix, key in zip(prefixes, keys, strict=True)]
    results, usage = engine.sample(requests, SamplingParams())
    assert usage.prefilled == usage.distinct_prefix_tokens
    return [len(sample.token_ids) for samples in results for sample in samples]


@torch.inference_mode()
def generate(model: Any, prefixes: list[np.ndarray], samples: int, batch: int) -> list[int]:
    """Return the lengths of the samples of `model.generate`."""
    rows = [prefix for prefix in sorted(prefixes, key=len) for _ in range(samples)]
    lengths: list[int] = []
    for first in range(0, len(rows), batch):
        chunk = rows[first : first + batch]
        longest = max(map(len, chunk))
        ids = torch.full((len(chunk), longest), PAD)
        for row, prefix in zip(ids, chunk, strict=True):
            row[longest - len(prefix) :] = torch.from_numpy(prefix)
        drawn = model.generate(
            input_ids=ids,
            attention_mask=(ids != PAD).long(),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=MAX_TOKENS,
        )[:, longest:]
        ended = drawn == END
        lengths += torch.where(ended.any(1), ended.int().argmax(1) + 1, drawn.shape[1]).tolist()
    return lengths


def tokens_per_second(contestants: dict[str, Callable[[int], list[int]]], repeats: int) -> dict[str, float]:
    """Return the median rate of each contestant; the contestants run in turn."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    lengths: dict[str, list[int]] = {name: [] for name in contestants}
    for repeat in range(repeats):
        for name, run in contestants.items():
            start = time.process_time()
            found = run(repeat)
            rates[name].append(sum(found) / (time.process_time() - start))
            lengths[name] += found
    for name, found in lengths.items():
        print(
            f"    {name:<14}{median(rates[name]):>10,.0f} tokens/s   "
            f"length {np.mean(found):.0f} ± {np.std(found):.0f}, longest {max(found)}",
            flush=True,
        )
    return {name: median(found) for name, found in rates.items()}


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    torch.set_num_threads(1)
    random = np.random.default_rng(1)
    for name, (layers, width, heads, rate, steps, count) in MODELS.items():
        model = learn(layers, width, heads, rate, steps)
        engine = TransformersSampler(copy.deepcopy(model), make_byte_tokenizer())
        prompts = [np.frombuffer(document(random)[0], np.uint8).astype(np.int32) for _ in range(count)]
        states = states_of(engine, prompts)
        print(f"{name}: {len(prompts)} prompts, {len(states)} states of their answers", flush=True)
        for what, prefixes, samples, target in (("Monte Carlo", states, 9, 3.0), ("plain", prompts, 8, 1.5)):
            print(f"  {what}: {samples} samples from each of {len(prefixes)} prefixes", flush=True)
            contestants: dict[str, Callable[[int], list[int]]] = {
                "spo": lambda repeat, p=prefixes, n=samples, e=engine: sample(e, p, n, repeat)
            }
            for batch in BATCHES:
                contestants[f"generate {batch}"] = lambda _, p=prefixes, n=samples, m=model, b=batch: generate(
                    m, p, n, b
                )
            found = tokens_per_second(contestants, repeats)
            ratio = found.pop("spo") / max(found.values())
            print(f"  {what}, {name}: {ratio:.1f}x the tokens/s of model.generate at its best (target {target}x)")


if __name__ == "__main__":
    main()
