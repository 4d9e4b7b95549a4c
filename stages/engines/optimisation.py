"""Owns what the policy step asks of an optimisation engine, and the step itself, which is the same on every engine.

An engine scores chosen tokens, takes gradients, steps and saves; it knows nothing of advantages and ratios.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from stages.engines.batches import Example, MicroBatch, collate, micro_batches
from stages.engines.head import Scored
from stages.maths import losses, statistics

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Whitening = Literal["batch", "micro-batch", "none"]


class Engine(Protocol):
    """A policy that can be scored and moved.

    Attributes:
      context_length: longest sequence, prompt and response together.
      vocabulary: tokens the output head knows.
    """

    context_length: int
    vocabulary: int

    def score(self, batch: MicroBatch, temperature: float) -> Scored:
        """Log-probability and entropy of every kept token, at least float32; differentiable unless told `no_grad`."""
        ...

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a 0-d loss to what is accumulated."""
        ...

    def step(self, learning_rate: float) -> float:
        """Clip, move the weights, forget the gradient. Returns the gradient's norm before clipping.

        Raises:
          FloatingPointError: the norm is not finite; the weights are as they were.
        """
        ...

    def discard(self) -> None:
        """Forget the accumulated gradient."""
        ...

    def save(
        self,
        directory: Path,
        tokenizer: PreTrainedTokenizerBase,
        write_more: Callable[[Path], None],
    ) -> None:
        """Write a model directory with the optimiser's state, atomically."""
        ...


@dataclass(frozen=True)
class Objective:
    """What the step minimises: PPO-clip over the kept tokens plus β · KL (see `maths.losses`).

    Attributes:
      temperature: τ of the distribution whose ratios are taken: that of sampling.
      whiten: over the kept tokens of the whole optimiser batch, of each micro-batch (the released code), or not.
      max_ratio: a batch whose mean ratio is above this is skipped whole.
    """

    temperature: float = 1.0
    epsilon: float = 0.2
    epsilon_high: float | None = None
    importance_cap: float | None = None
    beta: float = 0.0
    kl: losses.KLKind = "k3"
    whiten: Whitening = "batch"
    max_ratio: float = losses.MAX_MEAN_RATIO


def update(
    engine: Engine, batch: Sequence[Example], objective: Objective, size: int, learning_rate: float
) -> dict[str, float]:
    """One optimiser step on a batch, in micro-batches of at most `size` examples.

    Every share of the loss is divided by counts of the whole batch, so how it is split does not matter (but for
    rounding, and for `whiten="micro-batch"`). A batch without a kept token, or with a mean ratio above the limit,
    moves nothing: `skipped/empty` or `skipped/ratio` is 1.

    Returns:
      Metrics, named as TRL names them; means are over kept tokens.

    Raises:
      FloatingPointError: the loss or the gradient is not finite; the weights are as they were.
    """
    metrics = describe_batch(batch)
    tokens = sum(example.kept.size for example in batch)
    if tokens == 0:
        return metrics | {"skipped/empty": 1.0}
    totals: dict[str, torch.Tensor] = {}
    for group, advantages in whitened_groups(batch, size, objective.whiten):
        loss, sums = _share(engine, group, advantages, objective, tokens, len(batch))
        engine.backward(loss)
        for name, value in sums.items():  # tensors: one copy from the device per step, not per micro-batch
            totals[name] = totals[name] + value if name in totals else value
    sums = dict(zip(totals, torch.stack([value.double() for value in totals.values()]).tolist(), strict=True))
    metrics |= {name: value if name == "loss" else value / tokens for name, value in sums.items()}
    metrics["clip_ratio/region_mean"] = metrics["clip_ratio/low_mean"] + metrics["clip_ratio/high_mean"]
    if not math.isfinite(metrics["loss"]):
        engine.discard()
        raise FloatingPointError(f"the loss is {metrics['loss']}")
    if metrics["ratio/mean"] > objective.max_ratio:
        engine.discard()
        return metrics | {"skipped/ratio": 1.0}
    return metrics | {"grad_norm": engine.step(learning_rate), "learning_rate": learning_rate}


def score_all(
    engine: Engine, examples: Sequence[Example], size: int, temperature: float
) -> Iterator[tuple[int, NDArray[np.floating]]]:
    """Log-probabilities of the kept tokens, without gradient: pairs of an example's index and its [M]."""
    with torch.no_grad():
        for group in micro_batches(examples, size):
            chosen = [examples[index] for index in group]
            flat = engine.score(collate(chosen), temperature).logprobs.cpu().numpy()
            ends = np.cumsum([example.kept.size for example in chosen])
            yield from zip(group, np.split(flat, ends[:-1]), strict=True)


def whitened_groups(
    batch: Sequence[Example], size: int, whiten: Whitening
) -> Iterator[tuple[list[Example], NDArray[np.floating]]]:
    """Micro-batches of a batch, each with the advantages of its kept tokens [M] as the loss takes them."""
    advantages = [example.advantages for example in batch]
    if whiten == "batch":
        ends = np.cumsum([values.size for values in advantages])
        advantages = np.split(statistics.whiten(np.concatenate(advantages)), ends[:-1])
    for group in micro_batches(batch, size):
        values = np.concatenate([advantages[index] for index in group])
        yield [batch[index] for index in group], statistics.whiten(values) if whiten == "micro-batch" else values


def describe_batch(batch: Sequence[Example]) -> dict[str, float]:
    """What is known of a batch before the model sees it: reward, mask, advantages, counts."""
    advantages = np.concatenate([example.advantages for example in batch])
    rewards = [example.reward for example in batch if not math.isnan(example.reward)]
    response_tokens = sum(example.response_tokens for example in batch)
    figures = {
        "num_tokens": float(sum(example.tokens.size for example in batch)),
        "segments/count": float(sum(example.segments for example in batch)),
        "mask/fraction": advantages.size / max(response_tokens, 1),
    }
    if rewards:
        figures["reward"] = float(np.mean(rewards))
    if advantages.size:
        figures |= {"advantages/mean": float(advantages.mean()), "advantages/std": float(advantages.std())}
    return figures


def _share(
    engine: Engine,
    group: Sequence[Example],
    advantages: NDArray[np.floating],
    objective: Objective,
    tokens: int,
    sequences: int,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A micro-batch's share of the batch's loss, and its sums over kept tokens."""
    logprobs, entropy = engine.score(collate(group), objective.temperature)

    def beside(columns: list[NDArray[np.floating] | None]) -> torch.Tensor:
        """Stored log-probabilities; where none are stored the policy has not moved since, and its own are they."""
        stored = [column for column in columns if column is not None]
        if not stored:
            return logprobs.detach()
        return torch.from_numpy(np.concatenate(stored)).to(logprobs)

    old = beside([example.old for example in group])
    weights = torch.from_numpy(np.ascontiguousarray(advantages)).to(logprobs)
    token_losses, watched = losses.ppo_clip(
        logprobs, old, weights, objective.epsilon, objective.epsilon_high, objective.importance_cap
    )
    loss = losses.policy_loss(token_losses, tokens)
    sums = {
        "entropy": entropy.sum(),
        "ratio/mean": watched.ratio,
        "clip_ratio/low_mean": watched.clip_low,
        "clip_ratio/high_mean": watched.clip_high,
        "approx_kl": watched.approx_kl,
    }
    if objective.beta:
        kls = losses.kl_estimate(logprobs, beside([example.reference for example in group]), objective.kl)
        loss = loss + losses.kl_loss(kls, sequences, objective.beta)
        sums["kl"] = kls.detach().sum()
    return loss, {"loss": loss.detach()} | sums


def schedule(position: int, total: int, warmup: int, kind: Literal["constant", "linear", "cosine"]) -> float:
    """The factor on the learning rate at a step: rises over `warmup` steps, then stays, or falls to 0 at `total`.

    Args:
      position: steps taken before this one, so the first step of a warm-up of n has 1/n.
    """
    if position < warmup:
        return (position + 1) / warmup
    if kind == "constant":
        return 1.0
    done = min((position - warmup) / max(total - warmup, 1), 1.0)
    return 1.0 - done if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
