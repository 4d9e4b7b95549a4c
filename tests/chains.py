"""Small chains of the stages, made of real parts: models to sample from, calls with small defaults, ways to read."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stages import estimate, rollout, segment, sft
from stages.core.progress import Progress, Silent, Summary

ARITHMETIC: dict[str, Any] = {"task": "arithmetic", "task_arg": ("operations=1",)}
"""Questions of 5 tokens such as `3B+5C`; a right response is `B+5=8.#8` and the end token, 9 tokens."""


def learn_a_little(directory: Path) -> Path:
    """A tiny policy that finishes its responses and is right now and then."""
    sft.run(sft.Config(out=directory, preset="tiny", steps=60, per_device_batch_size=24, threads=1, **ARITHMETIC))
    return directory


def make_constant(directory: Path, chances: Mapping[str, float], end: float) -> Path:
    """A model that draws every token from one distribution, whatever came before: characters, and the end of text."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from stages.models.presets import BYTES, make_byte_tokenizer

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
    """The same model, made for sequences of `length` tokens."""
    shutil.copytree(model, directory)
    settings = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": length}))
    return directory


def sample(out: Path, model: Path, progress: Progress = Silent(), **options: Any) -> Summary:
    """`spo rollout` on a few small questions."""
    given: dict[str, Any] = {
        **ARITHMETIC,
        "num_questions": 4,
        "num_generations": 3,
        "max_tokens": 24,
        "threads": 1,
    } | options
    return rollout.run(rollout.Config(out=out, model=str(model), **given), progress)


def cut(out: Path, trajectories: Path, **options: Any) -> Summary:
    """`spo segment`."""
    return segment.run(segment.Config(out=out, trajectories=trajectories, **options))


def value(out: Path, cutpoints: Path, progress: Progress = Silent(), **options: Any) -> Summary:
    """`spo estimate` with a few rollouts."""
    given: dict[str, Any] = {"rollouts": 4, "threads": 1} | options
    return estimate.run(estimate.Config(out=out, cutpoints=cutpoints, **given), progress)


def rows(artefact: Path) -> list[dict[str, Any]]:
    """All rows of all parts, in order, read without any code of ours."""
    return [row for part in sorted(artefact.glob("*.parquet")) for row in pq.ParquetFile(part).read().to_pylist()]


def footer(part: Path) -> dict[str, Any]:
    """What a part says of itself."""
    return json.loads(pq.read_schema(part).metadata[b"spo"])
