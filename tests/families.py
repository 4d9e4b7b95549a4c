"""Tiny random models of the causal language model families of transformers: two layers or so, width 32, 258 tokens."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from stages.models.presets import make_byte_tokenizer
from stages.sampling.embedded.engine import CannotSample, TransformersSampler
from stages.sampling.plain import PlainSampler
from stages.sampling.protocol import Sampler

CONTEXT, WINDOW = 256, 16

_SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "n_embed"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff"), 64),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"), CONTEXT),
    "vocab_size": 258,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.25,
    "pad_token_id": 257,
    "bos_token_id": 256,
    "eos_token_id": 256,
    "sliding_window": WINDOW,
    "rotary_dim": 4,
    # Mixtures of experts.
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    # Latent attention.
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "v_head_dim", "qk_nope_head_dim"), 8),
    "qk_rope_head_dim": 4,
    # Recurrent layers.
    **dict.fromkeys(("linear_num_value_heads", "linear_num_key_heads", "mamba_expand"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 16),
    "mamba_n_groups": 1,
}  # fmt: skip
"""Values of the fields that a family's configuration has; `_MORE` adds and replaces."""
_LATENT: dict[str, Any] = {"num_key_value_heads": 4, "head_dim": None}
_RECURRENT_FIRST: dict[str, Any] = {"layer_types": ["linear_attention", "full_attention"]}
_MORE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "youtu"), _LATENT),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), _RECURRENT_FIRST),
    "granite": {"logits_scaling": 8.0},
    "bamba": {"attn_layer_indices": [1]},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "gemma4_text": {"vocab_size_per_layer_input": 258, "hidden_size_per_layer_input": 8},
}
"""Fields without which a tiny configuration of a family is not valid or leaves out what is particular to it."""


def make_config(family: str, **more: Any) -> PreTrainedConfig:
    """Return the configuration of a tiny model of a family (transformers' `model_type`)."""
    kind = CONFIG_MAPPING[family]
    known = {name for one in kind.__mro__ for name in getattr(one, "__annotations__", {})} | {*kind.attribute_map}
    fields = {name: value for name, value in _SIZES.items() if name in known} | _MORE.get(family, {}) | more
    return kind(**{name: value for name, value in fields.items() if value is not None})


def make_model(family: str, **more: Any) -> PreTrainedModel:
    """Return a tiny random model of a family, in evaluation mode; its weights depend on the family alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(make_config(family, **more)).float().eval()


SUPPORTED = (
    "afmoe", "apertus", "arcee", "bamba", "biogpt", "bitnet", "bloom", "codegen", "cohere", "cohere2",
    "cohere2_moe", "ctrl", "cwm", "deepseek_v2", "deepseek_v3", "deepseek_v4", "diffllama", "doge", "dots1",
    "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe", "falcon", "falcon_h1", "falcon_mamba", "flex_olmo",
    "gemma", "gemma2", "gemma3_text", "gemma4_text", "gemma4_unified_text", "glm", "glm4", "glm4_moe",
    "glm4_moe_lite", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_neox_japanese", "gpt_oss", "gptj",
    "granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared", "helium",
    "hrm_text", "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "hy_v4", "hyperclovax", "inkling_text", "jais2",
    "jamba", "jetmoe", "laguna", "lfm2", "lfm2_moe", "llama", "llama4_text", "mamba", "mamba2", "mellum",
    "mimo_v2_flash", "minicpm3", "minimax", "minimax_m2", "minimax_m3_vl_text", "ministral", "ministral3",
    "mistral", "mixtral", "modernbert-decoder", "mpt", "nanochat", "nemotron", "olmo", "olmo2", "olmo3",
    "olmo_hybrid", "olmoe", "openai-gpt", "opt", "persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe",
    "qwen3", "qwen3_5_text", "qwen3_moe", "qwen3_next", "recurrent_gemma", "seed_oss", "smollm3", "solar_open",
    "stablelm", "starcoder2", "vaultgemma", "xglm", "youtu",
)  # fmt: skip
"""Families that `make families` tests: their log-probabilities are those of their forward pass."""


def describe(sampler: Sampler) -> tuple[str, str]:
    """Return the engine that samples a family, and whether its samples are bitwise independent of their batch."""
    return "plain" if sampler.is_plain else "embedded", "rounding" if sampler.caveat else "bitwise"


def table() -> str:
    """Return the table of docs/models.md: `python -m tests.families` prints it."""
    lines = ["| Family | Engine | The same in every batch |", "|---|---|---|"]
    for family in SUPPORTED:
        try:
            sampler = TransformersSampler(make_model(family), make_byte_tokenizer())
        except CannotSample as obstacle:
            sampler = PlainSampler(make_model(family), make_byte_tokenizer(), str(obstacle))
        lines.append(f"| `{family}` | {' | '.join(describe(sampler))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table())
