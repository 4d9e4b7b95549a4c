"""Make models from scratch: small Qwen2 networks over bytes, for the quickstart, tests and offline machines.

The tokenizer has one token per byte. It reads any text, needs no training data, and leaves a tiny model its parameters
for the task instead of a vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from stages.core.errors import UserError

END, PAD = "<|endoftext|>", "<|pad|>"
BYTES = 256
CONTEXT_LENGTH = 2048

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {  # 99,136 parameters: learns `arithmetic` in under a minute on one CPU thread
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        # Four heads, a small rope_theta (positions differ at short range), and initial weights above the usual 0.02.
        # With fewer heads or the usual values, such a narrow network spends most of its steps, depending on the seed,
        # on the plateau before it learns to copy.
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        "initializer_range": 0.08,
    },
    "small": {  # about 4 million parameters: for trying real text on a CPU
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    },
}


def make_model(preset: str, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Make a randomly initialized model and its byte tokenizer; the weights depend only on (preset, seed).

    Raises:
      UserError: unknown preset.
    """
    config, tokenizer = make_config(preset), make_byte_tokenizer()
    with torch.random.fork_rng(devices=[]):  # leave the caller's random state unchanged
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config), tokenizer


def make_config(preset: str) -> Qwen2Config:
    """Return the configuration of a preset.

    Raises:
      UserError: unknown preset.
    """
    if preset not in PRESETS:
        raise UserError(f"unknown preset {preset!r}; expected one of {', '.join(PRESETS)}")
    return Qwen2Config(
        **PRESETS[preset],
        vocab_size=BYTES + 2,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=BYTES,
        pad_token_id=BYTES + 1,
    )


def make_byte_tokenizer() -> PreTrainedTokenizerBase:
    """Make a tokenizer whose token ids are the UTF-8 bytes of the text; 256 ends a text, 257 pads."""
    vocabulary = {character: byte for byte, character in enumerate(_visible_bytes())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def _visible_bytes() -> list[str]:
    """Return the character for each byte in byte-level BPE: itself if printable Latin-1, else U+0100 onwards."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, BYTES)}
    substitutes = iter(range(BYTES, 2 * BYTES))
    return [chr(byte if byte in printable else next(substitutes)) for byte in range(BYTES)]
