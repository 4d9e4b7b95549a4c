"""The forward pass of prefilling and decoding: hidden states of new tokens, whose keys and values go into a cache.

Any decoder of transformers can run through its own modules. A decoder built like Llama runs here in fewer and larger
operations: for a small model or a small batch, the number of operations takes most of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.nn import functional as F

from stages.sampling.embedded.invariance import LinearPlan, Plan, Shape, apply_plan, attend, layer_shape, linear
from stages.sampling.embedded.kv_cache import KeyValueRows
from stages.sampling.embedded.probe import Products, find_plan

_LIKE_LLAMA = ("llama", "mistral", "qwen2", "qwen3")

Spans = Sequence[tuple[slice, int]]


class Linear(NamedTuple):
    """A linear layer: its weight [outputs, inputs], its bias [outputs], and the plan of its product."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    plan: LinearPlan | None


class Forward(Protocol):
    """One pass over tokens int64 [B, T] at the positions that were set by `KeyValueRows.aim`.

    Attributes:
      plan: how its products are computed.
    """

    plan: Plan

    def __call__(
        self, ids: torch.Tensor, bias: torch.Tensor, rows: KeyValueRows, spans: Spans | None = None, /
    ) -> torch.Tensor:
        """Return hidden states [B, T, H] after the last norm; bias [B, 1, T, L] and spans as in `invariance.attend`."""
        ...


def make_forward(model: Any, context_length: int) -> Forward:
    """Return the forward pass of a model, and replace its linear layers and attention by the engine's."""
    decoder = model.get_decoder()
    plan = find_model_plan(model)
    apply_plan(model, plan)
    if _is_like_llama(model):
        return LlamaForward(decoder, plan)
    return ModuleForward(decoder, plan, context_length)


def find_model_plan(model: Any) -> Plan:
    """Return the plan of a model's products; it is probed only on a CPU in float32."""
    if model.device.type != "cpu" or model.dtype != torch.float32:
        return Plan()
    return find_plan(find_products(model), torch.get_num_threads())


def find_products(model: Any) -> Products:
    """Return the products of a model whose bits may depend on the batch; its weights may be on the meta device."""
    config, decoder = model.get_decoder().config, model.get_decoder()
    shapes = {shape for module in model.modules() if (shape := layer_shape(module))}
    if _is_like_llama(model):
        first, head = decoder.layers[0], layer_shape(model.get_output_embeddings())
        rest = (first.self_attn.o_proj,), (first.mlp.down_proj,)
        shapes = {_packed_shape(*layers) for layers in (_query_key_value(first), _gate_up(first), *rest)}
        shapes |= {head} if head else set()
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Products(frozenset(shapes), heads, groups, width)


def _is_like_llama(model: Any) -> bool:
    """Return whether `LlamaForward` computes this model: a known kind, in transformers' own code, without changes."""
    decoder, kind = model.get_decoder(), model.config.model_type
    is_original = type(decoder).__module__.startswith(f"transformers.models.{kind}.")
    return kind in _LIKE_LLAMA and is_original and _are_plain_linears(decoder)


class ModuleForward:
    """The pass through a decoder's own modules; its attention calls `invariance.attention`."""

    def __init__(self, decoder: nn.Module, plan: Plan, context_length: int) -> None:
        self.decoder, self.plan, self.last_position = decoder, plan, context_length - 1

    def __call__(
        self, ids: torch.Tensor, bias: torch.Tensor, rows: KeyValueRows, spans: Spans | None = None, /
    ) -> torch.Tensor:
        """See `Forward`."""
        return self.decoder(
            input_ids=ids,
            attention_mask=bias,
            position_ids=rows.positions.clamp(max=self.last_position),  # padding may exceed the context
            past_key_values=rows,
            use_cache=True,
            spans=spans,
            plan=self.plan.attention,
        ).last_hidden_state


@dataclass(frozen=True)
class _Layer:
    """Weights of a layer; projections of the same input are one product.

    Attributes:
      query_key_norm: [H + G, D] for models that normalize queries and keys; None for other models.
    """

    attention_norm: torch.Tensor
    query_key_value: Linear
    query_key_norm: torch.Tensor | None
    attention_out: Linear
    feed_norm: torch.Tensor
    gate_up: Linear
    down: Linear
    activation: Callable[[torch.Tensor], torch.Tensor]
    scaling: float


class LlamaForward:
    """The pass of a decoder built like Llama: RMS norms, rotary positions, grouped heads, a gated feed-forward."""

    def __init__(self, decoder: Any, plan: Plan) -> None:
        config = decoder.config
        self.plan = plan
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.width: int = decoder.layers[0].self_attn.head_dim
        self.epsilon: float = config.rms_norm_eps
        self.embedding, self.norm = decoder.embed_tokens.weight, decoder.norm.weight
        self.rotary = decoder.rotary_emb
        self.layers = [self._layer(layer) for layer in decoder.layers]
        self._cos_sin = torch.empty(2, 0, 1, self.width, device=self.embedding.device)

    def __call__(
        self, ids: torch.Tensor, bias: torch.Tensor, rows: KeyValueRows, spans: Spans | None = None, /
    ) -> torch.Tensor:
        """See `Forward`."""
        x = F.embedding(ids, self.embedding)
        cos, sin = self._rotations(rows)
        for number, layer in enumerate(self.layers):
            projected = linear(self._normed(x, layer.attention_norm), *layer.query_key_value)
            query_key, value = projected.unflatten(-1, (-1, self.width)).split(
                [self.heads + self.groups, self.groups], dim=2
            )
            if layer.query_key_norm is not None:
                query_key = F.rms_norm(query_key, (self.width,), None, self.epsilon) * layer.query_key_norm
            rotated = torch.addcmul(query_key * cos, query_key.roll(self.width // 2, -1), sin)
            query, key = rotated.split([self.heads, self.groups], dim=2)
            keys, values = rows.write(number, key, value)
            attended = attend(query.transpose(1, 2), keys, values, bias, layer.scaling, self.plan.attention, spans)
            x = x + linear(attended, *layer.attention_out)
            gate, up = linear(self._normed(x, layer.feed_norm), *layer.gate_up).chunk(2, dim=-1)
            x = x + linear(layer.activation(gate) * up, *layer.down)
        return self._normed(x, self.norm)

    def _normed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, weight.shape, weight, self.epsilon)

    def _rotations(self, rows: KeyValueRows) -> torch.Tensor:
        """Return cosines and sines of the rotary positions, [2, B, T, 1, D].

        The first half of the sines is negated, so that x · cos + roll(x) · sin rotates.
        """
        if self._cos_sin.shape[1] < rows.length:
            positions = torch.arange(rows.length, device=self.embedding.device)
            cos, sin = self.rotary(self.embedding, positions[None])
            sin = torch.cat([-sin[..., : self.width // 2], sin[..., self.width // 2 :]], dim=-1)
            self._cos_sin = torch.cat([cos, sin])[:, :, None]
        return self._cos_sin[:, rows.positions]

    def _layer(self, layer: Any) -> _Layer:
        attention, feed = layer.self_attn, layer.mlp
        query_key_norm = None
        if hasattr(attention, "q_norm"):
            norms = [attention.q_norm.weight.expand(self.heads, -1), attention.k_norm.weight.expand(self.groups, -1)]
            query_key_norm = torch.cat(norms).detach()
        return _Layer(
            attention_norm=layer.input_layernorm.weight,
            query_key_value=_pack(self.plan, *_query_key_value(layer)),
            query_key_norm=query_key_norm,
            attention_out=_pack(self.plan, attention.o_proj),
            feed_norm=layer.post_attention_layernorm.weight,
            gate_up=_pack(self.plan, *_gate_up(layer)),
            down=_pack(self.plan, feed.down_proj),
            activation=feed.act_fn,
            scaling=attention.scaling,
        )


def _are_plain_linears(decoder: Any) -> bool:
    """Return whether every projection is torch's own linear layer: neither quantized nor adapted."""
    return all(type(module) is nn.Linear for name, module in decoder.named_modules() if name.endswith("_proj"))


def _query_key_value(layer: Any) -> tuple[nn.Linear, ...]:
    return layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj


def _gate_up(layer: Any) -> tuple[nn.Linear, ...]:
    return layer.mlp.gate_proj, layer.mlp.up_proj


def _packed_shape(*linears: nn.Linear) -> Shape:
    """Return the shape of one linear layer in place of several with the same input."""
    return Shape(linears[0].in_features, sum(one.out_features for one in linears), linears[0].bias is not None)


@torch.no_grad()
def _pack(plan: Plan, *linears: nn.Linear) -> Linear:
    """Return one linear layer in place of several with the same input; their weights become views of its weight."""
    linear_plan = plan.linears.get(_packed_shape(*linears))
    if len(linears) == 1:
        return Linear(linears[0].weight, linears[0].bias, linear_plan)
    weight = torch.cat([layer.weight for layer in linears])
    bias = None if linears[0].bias is None else torch.cat([layer.bias for layer in linears])
    sizes = [layer.out_features for layer in linears]
    for layer, part in zip(linears, weight.split(sizes), strict=True):
        layer.weight.data = part
    return Linear(weight, bias, linear_plan)
