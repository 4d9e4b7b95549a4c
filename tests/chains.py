"""Small chains of real stages: models to sample from, calls of the stages with small defaults, readers of parts."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from stages import estimate, rollout, segment, sft
from stages.core.paths import AnyPath
from stages.core.progress import Progress, Silent, Summary
from stages.models.presets import BYTES, make_byte_tokenizer
from stages.sampling.pool import SamplerPool

ARITHMETIC: dict[str, Any] = {"task": "arithmetic", "task_arg": ("operations=1",)}
"""Questions of 5 tokens such as `3B+5C`; a correct response is `B+5=8.#8` and the end token, 9 tokens."""


def train_small_policy(directory: Path) -> Path:
    """Train a tiny policy that ends its responses and is sometimes correct; return its directory."""
    sft.run(sft.Config(out=directory, preset="tiny", steps=60, per_device_batch_size=24, threads=1, **ARITHMETIC))
    return directory


def make_constant(directory: Path, chances: Mapping[str, float], end: float) -> Path:
    """Make a model that draws every token from the same distribution, whatever the prefix; return its directory.

    Args:
      chances: probability of each character.
      end: probability of the end-of-text token.
    """
    config = Qwen2Config(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        vocab_size=BYTES + 2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=BYTES,
        pad_token_id=BYTES + 1,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        # Attention and MLP add nothing, so all hidden states are equal, and column 0 of the head holds the logits.
        model.model.embed_tokens.weight.fill_(1.0)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()  # pyright: ignore
            layer.mlp.down_proj.weight.zero_()  # pyright: ignore
        model.lm_head.weight.zero_()
        model.lm_head.weight[:, 0] = -60.0
        for token, chance in {**{ord(character): p for character, p in chances.items()}, BYTES: end}.items():
            model.lm_head.weight[token, 0] = math.log(chance)
    model.save_pretrained(directory)
    make_byte_tokenizer().save_pretrained(directory)
    return directory


def with_context(model: Path, directory: Path, length: int) -> Path:
    """Copy the model to `directory` with a context of `length` tokens; return the copy."""
    shutil.copytree(model, directory)
    settings = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": length}))
    return directory


def sample(
    out: AnyPath, model: AnyPath, progress: Progress = Silent(), pool: SamplerPool | None = None, **options: Any
) -> Summary:
    """Run `spo rollout` on a few small questions."""
    defaults: dict[str, Any] = {
        **ARITHMETIC,
        "num_questions": 4,
        "num_generations": 3,
        "max_tokens": 24,
        "threads": 1,
    } | options
    return rollout.run(rollout.Config(out=out, model=str(model), **defaults), progress, pool)


def cut(out: Path, trajectories: Path, **options: Any) -> Summary:
    """Run `spo segment`."""
    return segment.run(segment.Config(out=out, trajectories=trajectories, **options))


def value(
    out: Path, cutpoints: Path, progress: Progress = Silent(), pool: SamplerPool | None = None, **options: Any
) -> Summary:
    """Run `spo estimate` with a few rollouts."""
    defaults: dict[str, Any] = {"rollouts": 4, "threads": 1} | options
    return estimate.run(estimate.Config(out=out, cutpoints=cutpoints, **defaults), progress, pool)


def rows(artefact: Path) -> list[dict[str, Any]]:
    """Return all rows of all parts, in order, read by pyarrow alone."""
    return [row for part in sorted(artefact.glob("*.parquet")) for row in pq.ParquetFile(part).read().to_pylist()]


def footer(part: Path) -> dict[str, Any]:
    """Return the metadata that `spo` stores in a part."""
    return json.loads(pq.read_schema(part).metadata[b"spo"])
