"""Matrix products and attention whose rows have the same bits in every batch, on a CPU in float32.

A BLAS library may add the terms of a matrix product in another order when the shape of the product changes, and one
changed bit can change a sampled token. Which shapes are safe depends on the processor, the library and the number of
threads. A `Plan` therefore describes how the products are computed, and `stages.sampling.embedded.probe` finds, when a
model is loaded, the fastest plan under which a row's bits do not depend on its batch. All plans use two methods:

- padding: rows come in multiples of a number, because libraries use other kernels for very few rows;
- blocks: all products have one fixed shape, so that the result of a row depends only on that row.

The keys, values and hidden state of a token are then the same whether the token was drawn or prefilled.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

ROWS = 32  # rows of a batch and tokens of a prefill come in multiples of this number
_KEYS = 16  # keys come in multiples of this number if the plan does not need whole terms
_BLOCK_KEYS = 64  # keys of a product of fixed shape
_SCORES = 2**24  # maximum number of attention scores in memory
_NEUTRAL = {"dropout", "is_causal", "position_ids", "cache_position", "use_cache", "output_attentions", "return_dict"}
"""Arguments of transformers' attention functions that do not change the result of a forward pass in evaluation mode."""


@dataclass(frozen=True)
class LinearPlan:
    """How the product of a linear layer is computed.

    Attributes:
      multiple: rows are padded to a multiple of this number.
      most: maximum number of rows of one product; more rows take several products. A multiple of `multiple`.
    """

    multiple: int
    most: int


@dataclass(frozen=True)
class AttentionPlan:
    """How the products of attention are computed.

    Attributes:
      queries: query rows that share keys are padded to a multiple of this number, a power of two up to 32.
      terms: number of keys that one product with the values sums over.
      whole_terms: whether keys are padded to a multiple of `terms`, so that all sums have the same length; otherwise
        they are padded to a multiple of 16.
      blocked: whether every product has `queries` rows and 64 keys; otherwise one product has all rows and keys.
    """

    queries: int
    terms: int = 256
    whole_terms: bool = False
    blocked: bool = False

    def key_length(self, keys: int) -> int:
        """Return the number of keys to attend to, masked ones included, if `keys` of them are needed."""
        multiple = self.terms if self.whole_terms else _KEYS
        return -(-max(2, keys) // multiple) * multiple


@dataclass(frozen=True, order=True)
class Shape:
    """A linear layer: its sizes, whether it adds a bias, and whether its weight is stored [inputs, outputs]."""

    inputs: int
    outputs: int
    bias: bool = False
    transposed: bool = False


@dataclass(frozen=True)
class Plan:
    """How a model's products are computed.

    Attributes:
      attention: plan of its attention.
      linears: plans of its linear layers by shape; a layer of another shape computes all rows in one product.
      threads: CPU threads to sample with; None: torch's current number.
      bitwise: whether probing showed that a sample's bits do not depend on its batch.
    """

    attention: AttentionPlan = AttentionPlan(2)
    linears: Mapping[Shape, LinearPlan] = field(default_factory=dict)
    threads: int | None = None
    bitwise: bool = False


def whole_blocks(rows: int) -> int:
    """Return `rows` rounded up to a multiple of 32; at least 32."""
    return max(1, -(-rows // ROWS)) * ROWS


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor,
    scaling: float,
    plan: AttentionPlan,
    spans: Sequence[tuple[slice, int]] | None = None,
) -> torch.Tensor:
    """Return softmax(q kᵀ · scaling + bias) v with grouped heads.

    Args:
      query: [B, H, T, D]. keys: [B, G, D, L]. values: [B, G, L, D]; H a multiple of G, T 1 or a multiple of 32.
      bias: [B, 1, T, L], 0 or -inf; at least one 0 per query.
      plan: how to compute the products; L is one of its key lengths.
      spans: for T = 1, the number of keys that each run of rows needs; None: L for all rows.

    Returns:
      [B, T, H · D].
    """
    batch, heads, length, width = query.shape
    rows = max(1, _SCORES // (heads * length * keys.shape[-1]))
    if spans is None:
        spans = [(slice(first, first + rows), keys.shape[-1]) for first in range(0, batch, rows)]
    query = query * scaling
    parts = [
        _attend(query[part], keys[part, ..., :needed], values[part, :, :needed], bias[part, ..., :needed], plan)
        for part, needed in spans
    ]
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out.transpose(1, 2).reshape(batch, length, heads * width)


def _attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor, plan: AttentionPlan
) -> torch.Tensor:
    """Return the outputs [B, H, T, D] of scaled queries that all attend to the same number of keys."""
    batch, heads, length, width = query.shape
    groups, needed = keys.shape[1], keys.shape[-1]
    folded = query.reshape(batch * groups, -1, width)  # the heads of a group are rows of one product
    rows = folded.shape[1]
    if padding := -rows % plan.queries:
        folded = F.pad(folded, (0, 0, 0, padding))
    keys, values = keys.flatten(0, 1), values.flatten(0, 1)
    scores = _blocked_scores(folded, keys, plan.queries) if plan.blocked else torch.bmm(folded, keys)
    if padding:
        scores = scores[:, :rows].contiguous()
    scores = scores.view(batch, -1, length, needed)
    scores += bias
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype).view(batch * groups, -1, needed)
    if padding:
        weights = F.pad(weights, (0, 0, 0, padding))
    if plan.blocked:
        products = [_sum_values(block, values, plan.terms) for block in weights.split(plan.queries, dim=1)]
        out = products[0] if len(products) == 1 else torch.cat(products, dim=1)
    else:
        out = _sum_values(weights, values, plan.terms)
    return out[:, :rows].reshape(batch, heads, length, width)


def _blocked_scores(queries: torch.Tensor, keys: torch.Tensor, rows: int) -> torch.Tensor:
    """Return q k for q [N, R, D] and k [N, D, L], in products of `rows` rows and 64 keys: [N, R, L]."""
    scores = queries.new_empty(*queries.shape[:2], keys.shape[-1])
    for row in range(0, queries.shape[1], rows):
        for key in range(0, keys.shape[-1], _BLOCK_KEYS):
            block = slice(row, row + rows), slice(key, key + _BLOCK_KEYS)
            scores[:, block[0], block[1]] = torch.bmm(queries[:, block[0]], keys[..., block[1]])
    return scores


def _sum_values(weights: torch.Tensor, values: torch.Tensor, terms: int) -> torch.Tensor:
    """Return w v for w [N, R, L] and v [N, L, D], summed over `terms` keys at a time: [N, R, D]."""
    out = torch.bmm(weights[..., :terms], values[:, :terms])
    for first in range(terms, values.shape[1], terms):
        some = slice(first, first + terms)
        out = torch.baddbmm(out, weights[..., some], values[:, some])
    return out


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    spans: Sequence[tuple[slice, int]] | None = None,
    plan: AttentionPlan | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Do `attend` with the interface of transformers' attention functions.

    Args:
      key: [B, G, L, D]; the other tensors as in `attend`.

    Returns:
      [B, T, H, D], and None in place of the attention weights.

    Raises:
      ValueError: no mask or no plan: a sampler's model ran in a forward pass that is not the sampler's. Or the layer
        asks for something else than softmax over all keys.
    """
    if attention_mask is None or plan is None:
        raise ValueError("this model belongs to a sampler and runs only in its forward passes; load the model again")
    for name, setting in more.items():
        harmless = setting is None or name in _NEUTRAL or (name == "sliding_window" and setting >= key.shape[2])
        if not harmless:
            raise ValueError(f"its attention takes {name}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = attend(query, key.transpose(-1, -2), value, attention_mask, scale, plan, spans)
    return out.unflatten(-1, (query.shape[1], -1)), None


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, plan: LinearPlan | None) -> torch.Tensor:
    """Return `F.linear(x, weight, bias)`, computed by the plan; without a plan, all rows in one product."""
    if plan is None:
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    count = len(rows)
    if short := -count % plan.multiple:
        rows = F.pad(rows, (0, 0, 0, short))
    if len(rows) <= plan.most:
        out = F.linear(rows, weight, bias)
    else:
        out = torch.cat([F.linear(block, weight, bias) for block in rows.split(plan.most)])
    return out[:count].view(*x.shape[:-1], -1)


def layer_shape(module: nn.Module) -> Shape | None:
    """Return the shape of a linear layer; None for any other module."""
    if type(module) is nn.Linear:
        return Shape(module.in_features, module.out_features, module.bias is not None)
    if type(module) is Conv1D:  # the linear layer of GPT-2
        return Shape(*module.weight.shape, bias=True, transposed=True)
    return None


def apply_plan(model: nn.Module, plan: Plan) -> None:
    """Make every linear layer of a model compute its products by the plan."""
    for module in model.modules():
        shape = layer_shape(module)
        if shape is not None and shape in plan.linears:
            module.forward = types.MethodType(_planned_forward(plan.linears[shape], shape.transposed), module)


def _planned_forward(plan: LinearPlan, transposed: bool) -> Any:
    """Return a `forward` method for a linear layer."""
    if transposed:
        return lambda self, x: linear(x, self.weight.t(), self.bias, plan)
    return lambda self, x: linear(x, self.weight, self.bias, plan)
