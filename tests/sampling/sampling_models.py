"""Small random models, reference log-probabilities, and requests for the tests of the sampling engines."""

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
"""All but the last run in the engine's own forward pass; `phi3` runs in the modules of transformers."""
_CLASSES: dict[str, tuple[Any, Any]] = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "phi3": (Phi3Config, Phi3ForCausalLM),
}
END = 256


def make(kind: Kind, *, context: int = 2048, vocabulary: int = 258, width: int = 64, seed: int = 0, **more: Any) -> Any:
    """Return a random model of two layers. Its weights are large, so that its distributions are far from uniform.

    Args:
      kind: model family; `-grouped` means fewer key-value heads than query heads.
      context: number of positions.
      vocabulary: number of tokens; up to 256 tokens the model has no end token.
      width: hidden size.
      seed: seed of the weights.
      more: further fields of the model's configuration.
    """
    config, model = _CLASSES[kind.removesuffix("-grouped")]
    torch.manual_seed(seed)
    network = model(
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
    return network.eval()


def sampler(model: Any, rows: int | None = None) -> TransformersSampler:
    """Return the embedded engine on a copy of the model."""
    return TransformersSampler(copy.deepcopy(model), make_byte_tokenizer(), max_batch_rows=rows)


def random_prefixes(lengths: Sequence[int], seed: int = 0, vocabulary: int = 256) -> list[np.ndarray]:
    """Return one prefix of random token ids per length."""
    random = np.random.default_rng(seed)
    return [random.integers(0, vocabulary, length).astype(np.int32) for length in lengths]


def request(prefix: np.ndarray, samples: int, most: int, name: int = 0, **more: Any) -> Request:
    """Return a request for `samples` samples of at most `most` tokens; their keys derive from `name`."""
    return Request(prefix, tuple(random_key(name, i) for i in range(samples)), most, **more)


@torch.inference_mode()
def plain_logprobs(model: Any, prefix: np.ndarray, sample: Sample, temperature: float = 1.0) -> np.ndarray:
    """Return the log-probabilities of a sample's tokens from one forward pass over the whole sequence."""
    ids = torch.from_numpy(np.concatenate([prefix, sample.token_ids])).long()
    logits = model(ids[None]).logits[0, len(prefix) - 1 : -1].float() / temperature
    return torch.log_softmax(logits, -1).gather(1, ids[len(prefix) :, None])[:, 0].numpy()
