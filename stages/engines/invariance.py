"""What keeps a row's bits the same whatever shares its batch, on a CPU in float32.

A matrix product may sum in another order when the shape of the batch changes, and one changed bit can change a sampled
token. With MKL these hold (tests/engines/test_sampling_invariance.py asks for the outcome, not for them):
- with one thread, rows of `F.linear` do not depend on how many there are, from 16 on: rows come in blocks of 32;
- with more threads they do, so the product is taken block by block, each of the same shape;
- attention of a single query does not depend on masked keys, if keys come in multiples of 16;
- attention of a block of queries sums over at most 256 keys at a time only if their number is as in `key_length`.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

ROWS = 32


def whole_blocks(rows: int) -> int:
    """The least multiple of 32 that holds so many rows; at least 32."""
    return max(1, -(-rows // ROWS)) * ROWS


def key_length(keys: int, queries: int) -> int:
    """How many keys to attend to, masked ones included, when `keys` are needed by blocks of `queries` queries."""
    block = 32 if queries == 1 else 64 if keys <= 256 else 512
    return max(1, -(-keys // block)) * block


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    spans: Sequence[tuple[slice, int]] | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers' modules call it, with grouped heads and an additive mask, and no copies of the keys.

    Args:
      query: [B, H, T, D]. key, value: [B, G, L, D], H a multiple of G.
      attention_mask: [B, 1, T, L], 0 or -inf.
      spans: for T = 1, which rows need how many keys; None: all of them L.

    Returns:
      [B, T, H, D], and no weights.

    Raises:
      ValueError: no mask; a model that a sampler has taken over is not for other forward passes.
    """
    if attention_mask is None:
        raise ValueError("this model belongs to a sampler, whose attention takes a mask with every call; load another")
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    if length == 1:  # the heads of a group become the queries of one block
        folded = query.reshape(batch, groups, heads // groups, width)
        parts = [
            F.scaled_dot_product_attention(
                folded[rows],
                key[rows, :, :keys],
                value[rows, :, :keys],
                attn_mask=attention_mask[rows, ..., :keys],
                scale=scaling,
            )
            for rows, keys in spans or [(slice(None), key.shape[2])]
        ]
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return out.reshape(batch, 1, heads, value.shape[-1]), None
    if heads != groups and query.is_cuda:  # the fused kernels there take no groups beside a mask
        key, value = (x.repeat_interleave(heads // groups, dim=1) for x in (key, value))
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=key.shape[1] != heads
    )
    return out.transpose(1, 2).contiguous(), None


def block_linears(model: nn.Module) -> None:
    """Makes every linear layer of a model compute 32 rows at a time when the CPU uses several threads."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.forward = types.MethodType(_linear, module)


def _linear(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    if x.is_cuda or torch.get_num_threads() == 1:
        return F.linear(x, self.weight, self.bias)
    blocks = x.reshape(-1, x.shape[-1]).split(ROWS)
    return torch.cat([F.linear(block, self.weight, self.bias) for block in blocks]).view(*x.shape[:-1], -1)
