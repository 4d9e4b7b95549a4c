"""Estimate the memory of a model in a sampler and in a trainer from its configuration, without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder.

    Attributes:
      parameters: their number, tied ones once.
      width, inner: size of the hidden states, and of the states inside the feed-forward layers.
      cached: numbers that one layer keeps of one token for later ones (keys and values).
    """

    parameters: int
    layers: int
    width: int
    inner: int
    cached: int

    @classmethod
    def of_config(cls, config: PretrainedConfig) -> Shape:
        """Return the shape of a model of transformers, which is made without memory for its weights."""
        text: Any = config.get_text_config()
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        heads = text.num_attention_heads
        size = getattr(text, "head_dim", None) or text.hidden_size // heads
        keys = (getattr(text, "num_key_value_heads", None) or heads) * size
        inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
        return cls(
            sum(one.numel() for one in model.parameters()), text.num_hidden_layers, text.hidden_size, inner, 2 * keys
        )

    @property
    def checkpoint_bytes(self) -> int:
        """Return the bytes of a checkpoint: weights and two moments of AdamW in float32."""
        return 12 * self.parameters


@dataclass(frozen=True)
class Memory:
    """Bytes by purpose, in order."""

    parts: dict[str, float]

    @property
    def total(self) -> float:
        """Return all bytes."""
        return sum(self.parts.values())


def sampling_memory(shape: Shape, size: int, tokens: float) -> Memory:
    """Return the memory of a sampler: the weights, and the keys and values of all samples in flight.

    Args:
      size: bytes of a number.
      tokens: of all samples in flight together, prompts included.
    """
    return Memory({"weights": shape.parameters * size, "keys and values": tokens * shape.layers * shape.cached * size})


def training_memory(shape: Shape, size: int, tokens: float, *, checkpointing: bool, adapter: bool) -> Memory:
    """Return the memory of one trainer; weights, gradient and moments are float32.

    A layer keeps about 8 H + 4 I numbers of a token for the backward pass: inputs and outputs of the norms, queries,
    keys, values, the output of attention (H), and gate, activation, product and input of the feed-forward layer (I).
    With checkpointing it keeps H, and one layer at a time the rest.

    Args:
      size: bytes of a number of the activations.
      tokens: of a batch at its longest, prompts included.
      adapter: only an adapter is trained, whose own memory is neglected.
    """
    inside = 8 * shape.width + 4 * shape.inner
    kept = shape.layers * shape.width + inside if checkpointing else shape.layers * inside
    trained = 0 if adapter else shape.parameters
    return Memory(
        {"weights": 4 * shape.parameters, "gradient and moments": 12 * trained, "activations": tokens * kept * size}
    )
