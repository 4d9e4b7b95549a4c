"""The masked output head: log-probabilities of chosen tokens without a [batch, length, vocabulary] tensor.

The head gets only the hidden states of the chosen positions and processes them in chunks. The logits of a chunk exist
while it is processed and are recomputed for the gradient. Memory is [M] numbers and one chunk of logits, for any
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

LOGITS_PER_CHUNK = 2**24
"""Default number of logits in a chunk: 64 MiB in float32."""


class Scored(NamedTuple):
    """Log-probability [M] of each chosen token, and entropy [M] of the distribution that it was drawn from.

    Both in nats and at least float32, and differentiable.
    """

    logprobs: Tensor
    entropy: Tensor


def selected_log_probs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> Scored:
    """Compute log softmax((W h + b) / τ)[y] for each hidden state h and token y.

    The product is computed in the type of `hidden`, the softmax in float32 (float64 if hidden is float64). The gradient
    of the weights is summed over chunks in that wider type. Differentiable once, in hidden, weight and bias.

    Args:
      hidden: [M, H] floating; M may be 0.
      weight: [V, H], of any floating type, e.g. float32 masters under bfloat16 hidden states. May be tied.
      bias: [V] or None.
      targets: int64 [M] in [0, V).
      temperature: τ > 0.
      chunk: positions per chunk. Default: as many as make `LOGITS_PER_CHUNK` logits, but at least 16.

    Raises:
      ValueError: the shapes do not fit, or temperature or chunk are not positive.
    """
    if hidden.ndim != 2 or targets.shape != hidden.shape[:1] or weight.shape[1:] != hidden.shape[1:]:
        raise ValueError(
            f"expected hidden [M, H], weight [V, H] and targets [M]; "
            f"got {tuple(hidden.shape)}, {tuple(weight.shape)} and {tuple(targets.shape)}"
        )
    if temperature <= 0 or (chunk is not None and chunk < 1):
        raise ValueError(f"temperature and chunk must be positive; got {temperature} and {chunk}")
    chunk = chunk or default_chunk(weight.shape[0])
    return Scored(*_Head.apply(hidden, weight, bias, targets, temperature, chunk))  # pyright: ignore[reportArgumentType]


def selected_log_probs_of(
    logits: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, *, temperature: float, chunk: int
) -> Scored:
    """Compute log softmax(f(h) / τ)[y] like `selected_log_probs`, for any function f from hidden states to logits.

    The gradient is autograd's, with the logits of a chunk computed again.

    Args:
      logits: f, from [M, H] to [M, V]; differentiable in its argument and in weights of its own.
    """

    def score(states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        values = logits(states)
        wide = values.to(torch.promote_types(values.dtype, torch.float32)) / temperature
        logprobs = wide.log_softmax(-1)
        entropy = -(logprobs.detach().exp() * logprobs.detach()).sum(-1)
        return logprobs.gather(-1, tokens[:, None])[:, 0], entropy

    parts = [
        cast("tuple[Tensor, Tensor]", checkpoint(score, hidden[rows], targets[rows], use_reentrant=False))
        for rows in _chunks(targets, chunk)
    ] or [score(hidden, targets)]
    return Scored(torch.cat([one for one, _ in parts]), torch.cat([other for _, other in parts]).detach())


def default_chunk(vocabulary: int) -> int:
    """Return the positions per chunk that make `LOGITS_PER_CHUNK` logits, but at least 16."""
    return max(16, LOGITS_PER_CHUNK // vocabulary)


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logprobs, entropy, log_normalizer = (hidden.new_empty(targets.shape, dtype=wide) for _ in range(3))
        probabilities = None
        head = _cast(hidden, weight, bias)
        for rows in _chunks(targets, chunk):
            logits = _logits(hidden[rows], *head, temperature, wide)
            largest = logits.amax(-1, keepdim=True)
            probabilities = (logits - largest).exp_()
            total = probabilities.sum(-1, keepdim=True)
            probabilities.div_(total)
            log_normalizer[rows] = (largest + total.log()).squeeze(-1)
            logprobs[rows] = logits.gather(-1, targets[rows, None]).squeeze(-1) - log_normalizer[rows]
            # H = log Z − Σ p · logit; the batched product avoids a second [chunk, V] tensor.
            mean_logit = torch.bmm(probabilities[:, None, :], logits[:, :, None]).flatten()
            entropy[rows] = log_normalizer[rows] - mean_logit
            del logits
        # Backward starts with the last chunk, so its probabilities are kept: a small batch is one chunk, and its logits
        # are computed only once.
        ctx.last = probabilities if any(ctx.needs_input_grad[:3]) else None
        ctx.save_for_backward(hidden, weight, bias, targets, log_normalizer, entropy)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.set_materialize_grads(False)  # the entropy usually has no gradient; then none is computed
        return logprobs, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor | None, grad_entropy: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Compute d log p[y] / d logits = (1[y] − p) / τ and dH / d logits = −p (log p + H) / τ, last chunk first."""
        hidden, weight, bias, targets, log_normalizer, entropy = ctx.saved_tensors
        grad = torch.zeros_like(entropy) if grad is None else grad
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        head = _cast(hidden, weight, bias)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=grad.dtype) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=grad.dtype) if wants_bias else None
        for rows in reversed(_chunks(targets, ctx.chunk)):
            slope, ctx.last = ctx.last, None  # p of the chunk, then in place the gradient of its logits
            if slope is None:
                slope = _logits(hidden[rows], *head, ctx.temperature, grad.dtype)
                slope.sub_(log_normalizer[rows, None]).exp_()
            scale = grad[rows, None] / ctx.temperature
            of_entropy = None
            if grad_entropy is not None:
                of_entropy = torch.special.xlogy(slope, slope).addcmul_(slope, entropy[rows, None])
                of_entropy.mul_(-grad_entropy[rows, None] / ctx.temperature)
            slope.mul_(-scale).scatter_add_(-1, targets[rows, None], scale)
            if of_entropy is not None:
                slope += of_entropy
            if grad_bias is not None:
                grad_bias += slope.sum(0)
            slope = slope.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(slope, head[0], out=grad_hidden[rows])
            if grad_weight is not None and grad_weight.dtype == slope.dtype:
                grad_weight.addmm_(slope.T, hidden[rows])
            elif grad_weight is not None:  # 16-bit products, summed in the wider type
                grad_weight += slope.T @ hidden[rows]
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            *[None] * 3,
        )


def _cast(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, wide: torch.dtype) -> Tensor:
    logits = F.linear(hidden, weight, bias).to(wide)
    return logits if temperature == 1.0 else logits.div_(temperature)


def _chunks(targets: Tensor, chunk: int) -> list[slice]:
    return [slice(start, start + chunk) for start in range(0, targets.numel(), chunk)]
