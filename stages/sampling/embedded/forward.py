"""Hidden states of new tokens, whose keys and values are written into rows: what prefilling and decoding run.

Any decoder of transformers runs through its own modules. Those built like Llama run here, in fewer and larger
operations: for a small model, or a small batch, the number of operations is most of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.nn import functional as F

from stages.sampling.embedded.invariance import LinearPlan, Plan, Shape, apply_plan, attend, layer_shape, linear
from stages.sampling.embedded.kv_cache import Rows
from stages.sampling.embedded.probe import Products, find_plan

_LIKE_LLAMA = ("llama", "mistral", "qwen2", "qwen3")

Spans = Sequence[tuple[slice, int]]


class Linear(NamedTuple):
    """A linear layer: its weight [outputs, inputs], its bias [outputs], and how its product is computed."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    plan: LinearPlan | None


class Forward(Protocol):
    """One pass over tokens int64 [B, T] that stand where the rows were aimed at (`Rows.aim`).

    Attributes:
      plan: how its products are computed.
    """

    plan: Plan

    def __call__(
        self, ids: torch.Tensor, bias: torch.Tensor, rows: Rows, spans: Spans | None = None, /
    ) -> torch.Tensor:
        """Hidden states [B, T, H] behind the last norm; bias [B, 1, T, L] and spans as for `invariance.attend`."""
        ...


def make_forward(model: Any, context_length: int) -> Forward:
    """Return the pass for a model, whose attention and linear layers become the engine's."""
    decoder = model.get_decoder()
    plan = find_model_plan(model)
    apply_plan(model, plan)
    if _is_like_llama(model):
        return LlamaForward(decoder, plan)
    return ModuleForward(decoder, plan, context_length)


def find_model_plan(model: Any) -> Plan:
    """Return how a model's products are computed: on a CPU in float32 so that no row depends on its batch."""
    if model.device.type != "cpu" or model.dtype != torch.float32:
        return Plan()
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
    return find_plan(Products(frozenset(shapes), heads, groups, width), torch.get_num_threads())


def _is_like_llama(model: Any) -> bool:
    decoder, kind = model.get_decoder(), model.config.model_type
    at_home = type(decoder).__module__.startswith(f"transformers.models.{kind}.")
    return kind in _LIKE_LLAMA and at_home and _are_plain_linears(decoder)


class ModuleForward:
    """The pass through a decoder's own modules; its attention calls `invariance.attention`."""

    def __init__(self, decoder: nn.Module, plan: Plan, context_length: int) -> None:
        self.decoder, self.plan, self.last_position = decoder, plan, context_length - 1

    def __call__(
        self, ids: torch.Tensor, bias: torch.Tensor, rows: Rows, spans: Spans | None = None, /
    ) -> torch.Tensor:
        """See `Forward`."""
        return self.decoder(
            input_ids=ids,
            attention_mask=bias,
            position_ids=rows.positions.clamp(max=self.last_position),  # padding may stand behind the context
            past_key_values=rows,
            use_cache=True,
            spans=spans,
            plan=self.plan.attention,
        ).last_hidden_state


@dataclass(frozen=True)
class _Layer:
    """Weights of a layer; those that read the same input are one product.

    Attributes:
      turned_norm: [H + G, D] for models that normalise queries and keys; None for those that do not.
    """

    attention_norm: torch.Tensor
    query_key_value: Linear
    turned_norm: torch.Tensor | None
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
        self._turns = torch.empty(2, 0, 1, self.width, device=self.embedding.device)

    def __call__(
        self, ids: torch.Tensor, bias: torch.Tensor, rows: Rows, spans: Spans | None = None, /
    ) -> torch.Tensor:
        """See `Forward`."""
        x = F.embedding(ids, self.embedding)
        cos, sin = self._rotations(rows)
        for number, layer in enumerate(self.layers):
            projected = linear(self._normed(x, layer.attention_norm), *layer.query_key_value)
            query_key, value = projected.unflatten(-1, (-1, self.width)).split(
                [self.heads + self.groups, self.groups], dim=2
            )
            if layer.turned_norm is not None:
                query_key = F.rms_norm(query_key, (self.width,), None, self.epsilon) * layer.turned_norm
            turned = torch.addcmul(query_key * cos, query_key.roll(self.width // 2, -1), sin)
            query, key = turned.split([self.heads, self.groups], dim=2)
            keys, values = rows.write(number, key, value)
            attended = attend(query.transpose(1, 2), keys, values, bias, layer.scaling, self.plan.attention, spans)
            x = x + linear(attended, *layer.attention_out)
            gate, up = linear(self._normed(x, layer.feed_norm), *layer.gate_up).chunk(2, dim=-1)
            x = x + linear(layer.activation(gate) * up, *layer.down)
        return self._normed(x, self.norm)

    def _normed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, weight.shape, weight, self.epsilon)

    def _rotations(self, rows: Rows) -> torch.Tensor:
        """Cosines, and sines whose first half is negated as rotating does, [2, B, T, 1, D]."""
        if self._turns.shape[1] < rows.length:
            positions = torch.arange(rows.length, device=self.embedding.device)
            cos, sin = self.rotary(self.embedding, positions[None])
            sin = torch.cat([-sin[..., : self.width // 2], sin[..., self.width // 2 :]], dim=-1)
            self._turns = torch.cat([cos, sin])[:, :, None]
        return self._turns[:, rows.positions]

    def _layer(self, layer: Any) -> _Layer:
        attention, feed = layer.self_attn, layer.mlp
        turned_norm = None
        if hasattr(attention, "q_norm"):
            of_heads = [attention.q_norm.weight.expand(self.heads, -1), attention.k_norm.weight.expand(self.groups, -1)]
            turned_norm = torch.cat(of_heads).detach()
        return _Layer(
            attention_norm=layer.input_layernorm.weight,
            query_key_value=_pack(self.plan, *_query_key_value(layer)),
            turned_norm=turned_norm,
            attention_out=_pack(self.plan, attention.o_proj),
            feed_norm=layer.post_attention_layernorm.weight,
            gate_up=_pack(self.plan, *_gate_up(layer)),
            down=_pack(self.plan, feed.down_proj),
            activation=feed.act_fn,
            scaling=attention.scaling,
        )


def _are_plain_linears(decoder: Any) -> bool:
    """Whether every projection is torch's own linear layer: neither quantised nor adapted."""
    return all(type(module) is nn.Linear for name, module in decoder.named_modules() if name.endswith("_proj"))


def _query_key_value(layer: Any) -> tuple[nn.Linear, ...]:
    return layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj


def _gate_up(layer: Any) -> tuple[nn.Linear, ...]:
    return layer.mlp.gate_proj, layer.mlp.up_proj


def _packed_shape(*linears: nn.Linear) -> Shape:
    """The shape of linear layers that read the same input, as one."""
    return Shape(linears[0].in_features, sum(one.out_features for one in linears), linears[0].bias is not None)


@torch.no_grad()
def _pack(plan: Plan, *linears: nn.Linear) -> Linear:
    """Linear layers that read the same input as one; where there are several, their weights become its parts."""
    of_shape = plan.linears.get(_packed_shape(*linears))
    if len(linears) == 1:
        return Linear(linears[0].weight, linears[0].bias, of_shape)
    weight = torch.cat([layer.weight for layer in linears])
    bias = None if linears[0].bias is None else torch.cat([layer.bias for layer in linears])
    sizes = [layer.out_features for layer in linears]
    for layer, part in zip(linears, weight.split(sizes), strict=True):
        layer.weight.data = part
    return Linear(weight, bias, of_shape)
