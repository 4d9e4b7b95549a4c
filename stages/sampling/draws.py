"""Draw tokens from logits: temperature, top-k, top-p and the draw itself, for many rows at once; entropies."""

from __future__ import annotations

import torch

from stages.sampling.protocol import SamplingParams

# Probabilities are rounded to whole multiples of 2^-48. Their running sums are then exact on every device, so rounding
# can neither pick a token of probability zero nor make a draw depend on the order of a sum.
_UNIT = 2.0**48
_ENTROPY_UNIT = 2.0**40
_NUCLEUS = 1024  # top-p first looks at this many of the largest probabilities: sorting a large vocabulary is slow


def draw_tokens(
    logits: torch.Tensor, uniforms: torch.Tensor, params: SamplingParams
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw tokens from each row by the inverse of the cumulative distribution, in order of token id.

    Args:
      logits: [B, V], any float type.
      uniforms: float64 [B, K] in [0, 1), for K draws from each row.
      params: temperature, top-p, top-k. At temperature 0 the most probable token is chosen, the first among equals.

    Returns:
      Token ids int64 [B, K], and their log-probabilities float32 [B, K] under softmax(logits / temperature) over all V
      tokens, regardless of top-p and top-k. At temperature 0 the log-probabilities are those at temperature 1.
    """
    logprobs = _log_softmax(logits, params.temperature)
    if params.temperature == 0:
        tokens = logprobs.argmax(dim=-1, keepdim=True).expand(uniforms.shape)
    else:
        weights = (logprobs.exp() * _UNIT).to(torch.int64)
        weights = _keep_most_probable(weights, params.top_k, params.top_p)
        cumulative = weights.cumsum(dim=-1)
        total = cumulative[:, -1:]
        drawn = torch.minimum((uniforms * total).to(torch.int64), total - 1)
        tokens = torch.searchsorted(cumulative, drawn, right=True)
    return tokens, logprobs.gather(1, tokens)


def entropies(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Return the entropy −Σ p log p of each row's distribution, the one that `draw_tokens` takes log-probabilities of.

    The terms are rounded to multiples of 2^-40 nats, so that their sum is exact in any order.

    Args:
      logits: [B, V], any float type.

    Returns:
      float32 [B], in nats.
    """
    logprobs = _log_softmax(logits, params.temperature)
    terms = torch.special.entr(logprobs.exp())
    return ((terms * _ENTROPY_UNIT).to(torch.int64).sum(dim=-1).double() / _ENTROPY_UNIT).float()


def _log_softmax(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return log-probabilities float32 [B, V] at a temperature; at temperature 0, those at temperature 1."""
    scaled = logits.float()
    return torch.log_softmax(scaled if temperature in (0, 1) else scaled / temperature, dim=-1)


def _keep_most_probable(weights: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Set to 0 the weights that top-k, then top-p exclude; tokens as probable as the last kept one are kept too."""
    size = weights.shape[-1]
    if 0 < top_k < size:
        smallest = weights.topk(top_k, dim=-1).values[:, -1:]
        weights = weights.where(weights >= smallest, 0)
    if top_p < 1:
        enough = weights.sum(dim=-1, keepdim=True) * top_p
        largest = weights.topk(min(_NUCLEUS, size), dim=-1).values
        if bool((largest.sum(dim=-1, keepdim=True) < enough).any()):
            largest = weights.sort(dim=-1, descending=True).values
        before = largest.cumsum(dim=-1) - largest
        last = (before < enough).sum(dim=-1, keepdim=True) - 1
        weights = weights.where(weights >= largest.gather(1, last), 0)
    return weights
