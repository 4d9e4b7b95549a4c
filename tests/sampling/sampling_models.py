"""Small real models, the plain way to compute what the sampler should, and requests, for the sampling tests."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from stages.maths.randomness import random_key
from stages.models.presets import make_byte_tokenizer
from stages.sampling.embedded.engine import TransformersSampler
from stages.sampling.protocol import Request, Sample

Kind = Literal["qwen2", "qwen2-grouped", "llama-grouped", "qwen3-grouped", "phi3"]
KINDS: tuple[Kind, ...] = ("qwen2", "qwen2-grouped", "llama-grouped", "qwen3-grouped", "phi3")
"""All but the last run in the engine's own forward pass, the last one in its own modules."""
_CLASSES: dict[str, tuple[Any, Any]] = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "phi3": (Phi3Config, Phi3ForCausalLM),
}
END = 256


def make(kind: Kind, *, context: int = 2048, vocabulary: int = 258, width: int = 64, seed: int = 0, **more: Any) -> Any:
    """A random model, sharp enough that its choices differ; its head is not tied."""
    config, model = _CLASSES[kind.removesuffix("-grouped")]
    torch.manual_seed(seed)
    made = model(
        config(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2 if kind.endswith("-grouped") else 4,
            head_dim=width // 4,
            max_position_embeddings=context,
            initializer_range=0.2,
            eos_token_id=END if vocabulary > END else None,
            pad_token_id=None,
            bos_token_id=None,
            **more,
        )
    )
    return made.eval()


def sampler(model: Any, rows: int | None = None) -> TransformersSampler:
    """The engine on a model of its own with the same weights."""
    return TransformersSampler(copy.deepcopy(model), make_byte_tokenizer(), max_batch_rows=rows)


def random_prefixes(lengths: Sequence[int], seed: int = 0, vocabulary: int = 256) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, vocabulary, length).astype(np.int32) for length in lengths]


def request(prefix: np.ndarray, samples: int, most: int, name: int = 0, **more: Any) -> Request:
    return Request(prefix, tuple(random_key(name, i) for i in range(samples)), most, **more)


@torch.inference_mode()
def plain_logprobs(model: Any, prefix: np.ndarray, sample: Sample, temperature: float = 1.0) -> np.ndarray:
    """Log-probabilities of a sample's tokens by one forward pass over the whole sequence."""
    ids = torch.from_numpy(np.concatenate([prefix, sample.token_ids])).long()
    logits = model(ids[None]).logits[0, len(prefix) - 1 : -1].float() / temperature
    return torch.log_softmax(logits, -1).gather(1, ids[len(prefix) :, None])[:, 0].numpy()
