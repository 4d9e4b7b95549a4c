"""Measure the variance of the policy gradient under several advantages of the same responses.

The contribution of a response is g = Σ_t A_t ∇ log π(y_t), over all its tokens, at the policy that sampled it and in
the units of the reward: nothing is whitened, clipped or masked. Over n responses with mean ḡ, the variance is the trace
of the covariance of g, (Σ |g|² − n |ḡ|²) / (n − 1), and the signal |E g|² is |ḡ|² − variance / n, without bias.

At equal tokens, a method whose samples take T tokens per response averages over B / T responses, so what compares
methods is variance · T; divided by the signal, it does not depend on the scale of the advantages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from stages.core.progress import Progress

SCHEMA = pa.schema(
    {
        "trajectory_id": pa.string(),
        "method": pa.string(),
        "tokens": pa.float64(),
        "squared_norm": pa.float64(),
        "along_mean": pa.float64(),
    }
)
"""One row per response and method: |g|², g · ḡ, and the tokens that the method samples per response."""

_ROUNDING = 1e-6
"""Share of |ḡ|² below which a difference is rounding and no signal, as if a single gradient is not 0."""


@dataclass(frozen=True)
class WeightedResponse:
    """A response with the advantage of each of its tokens under each method.

    Attributes:
      tokens: int64 [P + T], prompt and response; the first of them has no prediction.
      advantages: method → float64 [T].
    """

    name: str
    tokens: NDArray[np.int64]
    advantages: Mapping[str, NDArray[np.float64]]


def gradient_rows(
    model: PreTrainedModel,
    responses: Sequence[WeightedResponse],
    tokens: Mapping[str, float],
    temperature: float,
    progress: Progress,
) -> pa.Table:
    """Return the rows of `SCHEMA`.

    Two passes over the responses are made, so that one gradient and one mean per method are in memory at a time.

    Args:
      tokens: method → tokens that it samples per response.
      temperature: τ of the distribution that sampled.
    """
    parameters = [one for one in model.parameters() if one.requires_grad]
    mean = {name: [torch.zeros_like(one) for one in parameters] for name in tokens}
    progress.start("gradients", 2 * len(responses), "passes")
    squared: dict[tuple[str, str], float] = {}
    for one in responses:
        for name, gradient in _gradients(model, parameters, one, temperature):
            squared[one.name, name] = _dot(gradient, gradient)
            for total, own in zip(mean[name], gradient, strict=True):
                total.add_(own, alpha=1 / len(responses))
        progress.advance(1, one.tokens.size)
    rows: list[dict[str, Any]] = []
    for one in responses:
        for name, gradient in _gradients(model, parameters, one, temperature):
            found = {"squared_norm": squared[one.name, name], "along_mean": _dot(gradient, mean[name])}
            rows.append({"trajectory_id": one.name, "method": name, "tokens": tokens[name]} | found)
        progress.advance(1, one.tokens.size)
    return pa.Table.from_pylist(rows, SCHEMA)


def summarize(table: pa.Table) -> list[dict[str, Any]]:
    """Return, for each method, the figures that the module describes; NaN where the responses do not determine one.

    Returns:
      `method`, `responses`, `tokens` per response, `variance`, `signal`, `at_equal_tokens` = variance · tokens,
      `noise` = that over the signal (infinite if no signal is seen), and `relative` = that over the first method's.
    """
    found: list[dict[str, Any]] = []
    for name in dict.fromkeys(table["method"].to_pylist()):
        rows = [row for row in table.to_pylist() if row["method"] == name]
        n, norm = len(rows), float(np.mean([row["along_mean"] for row in rows]))
        spread = sum(row["squared_norm"] for row in rows) - n * norm
        variance = spread / (n - 1) if n > 1 else float("nan")
        signal, tokens = norm - variance / n, rows[0]["tokens"]
        figures = {"method": name, "responses": n, "tokens": tokens, "variance": variance, "signal": signal}
        scaled = variance * tokens
        noise = scaled / signal if signal > _ROUNDING * norm else float("inf")
        found.append(figures | {"at_equal_tokens": scaled, "noise": noise})
    first = found[0]["at_equal_tokens"] if found else 0.0
    return [one | {"relative": one["at_equal_tokens"] / first if first else float("nan")} for one in found]


def _gradients(
    model: PreTrainedModel, parameters: list[torch.nn.Parameter], one: WeightedResponse, temperature: float
) -> list[tuple[str, list[torch.Tensor]]]:
    """Return (method, gradient) of a response, all from one forward pass."""
    device = parameters[0].device
    ids, length = torch.from_numpy(one.tokens).to(device), len(next(iter(one.advantages.values())))
    logits = model(input_ids=ids[None], use_cache=False).logits[0, -length - 1 : -1].float() / temperature
    logprobs = logits.log_softmax(-1).gather(-1, ids[-length:, None])[:, 0]
    found: list[tuple[str, list[torch.Tensor]]] = []
    for i, (name, advantages) in enumerate(one.advantages.items()):
        weights = torch.from_numpy(advantages).to(logprobs)
        keep = i + 1 < len(one.advantages)
        own = torch.autograd.grad(weights @ logprobs, parameters, retain_graph=keep, allow_unused=True)
        pairs = zip(own, parameters, strict=True)
        found.append((name, [torch.zeros_like(p) if g is None else g for g, p in pairs]))
    return found


def _dot(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    return float(sum((a.double() * b.double()).sum() for a, b in zip(one, other, strict=True)))
