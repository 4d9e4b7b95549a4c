"""Test every family of causal language models on a tiny random model: sampler and trainer against its forward pass.

`make families` tests all of them; the suite tests those of `SAMPLE`. Prefixes are shorter and longer than the window of
16 tokens and share batches. docs/models.md has the results.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.models.loading import load_model
from stages.models.presets import make_byte_tokenizer
from stages.optimization.batches import Example, collate
from stages.optimization.torch import TorchEngine
from stages.sampling.embedded.engine import CannotSample, TransformersSampler
from stages.sampling.plain import PlainSampler
from stages.sampling.protocol import SamplingParams
from tests.families import SUPPORTED, describe, make_model
from tests.sampling.sampling_models import plain_logprobs, random_prefixes, request

DOCUMENT = Path(__file__).resolve().parents[1] / "docs/models.md"
SAMPLE = (
    "llama", "gpt2", "granite", "cohere", "qwen3_moe", "opt", "gemma2", "gemma3_text", "gemma4_text", "olmo3",
    "mistral", "deepseek_v3", "glm4_moe_lite", "minicpm3", "gpt_oss", "qwen3_next", "qwen3_5_text", "mamba2",
    "jamba", "lfm2", "falcon_h1", "gpt_neo", "gpt_neox_japanese", "bloom", "mpt", "nanochat", "llama4_text",
    "modernbert-decoder",
)  # fmt: skip
FAMILIES = SUPPORTED if os.environ.get("TEST_ALL_FAMILIES") else SAMPLE


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_are_those_of_plain_transformers(family: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    plain, tokenizer = make_model(family), make_byte_tokenizer()
    plain.save_pretrained(tmp_path)
    model = load_model(tmp_path, torch.device("cpu"), torch.float32)
    try:
        sampler = TransformersSampler(copy.deepcopy(model), tokenizer)
    except CannotSample as obstacle:
        sampler = PlainSampler(copy.deepcopy(model), tokenizer, str(obstacle))
    engine_name, bits = documented()[family]
    assert describe(sampler)[0] == engine_name
    assert bits == "bitwise" or sampler.caveat  # a CPU of another kind may have a caveat for all
    requests = [request(prefix, 2, 25, name) for name, prefix in enumerate(random_prefixes([5, 40, 21]))]
    results, _ = sampler.sample(requests, SamplingParams(temperature=0.8))
    pairs = [(one.prefix, sample) for one, samples in zip(requests, results, strict=True) for sample in samples]
    engine = TorchEngine(model)
    examples = []
    for prefix, sample in pairs:
        expected = plain_logprobs(plain, prefix, sample, 0.8)
        np.testing.assert_allclose(sample.logprobs, expected, rtol=0, atol=1e-4)
        tokens = np.concatenate([prefix, sample.token_ids])
        kept = np.arange(len(prefix), len(tokens))
        examples.append(Example(tokens, kept, np.ones(len(kept)), sampled=expected))
    scored = engine.score(collate(examples), 0.8).logprobs
    expected = np.concatenate([example.sampled for example in examples if example.sampled is not None])
    np.testing.assert_allclose(scored.detach().numpy(), expected, rtol=0, atol=1e-4)
    scored.sum().backward()
    assert any(one.grad is not None and bool(one.grad.abs().max() > 0) for one in model.parameters())


def documented() -> dict[str, tuple[str, str]]:
    """Return engine and reproducibility of each family in the table of docs/models.md."""
    rows = [line.strip("| ").split(" | ") for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    return {family.strip("`"): (engine, bits) for family, engine, bits in rows}


def test_the_table_lists_every_family_that_is_supported() -> None:
    assert set(documented()) == set(SUPPORTED)
