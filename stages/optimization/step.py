"""Owns what the policy step asks of an optimisation engine, and the step itself, which is the same on every engine.

An engine scores chosen tokens, takes gradients, steps and saves; it knows nothing of advantages and ratios, which the
objective turns into a loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from stages.maths import statistics
from stages.maths.mismatch import multiplicative_error
from stages.optimization.batches import Example, Layout, MicroBatch, RankSubset, padded
from stages.optimization.head import Scored
from stages.optimization.objective import MAX_METRIC, BatchTotals, MicroBatchExamples, Objective, micro_batch_loss
from stages.optimization.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Scorer(Protocol):
    """A policy that can be scored."""

    def score(self, batch: MicroBatch, temperature: float) -> Scored:
        """Log-probability and entropy of every kept token, at least float32; differentiable unless told `no_grad`."""
        ...


class Engine(Scorer, Protocol):
    """A policy that can be scored and moved.

    Attributes:
      model: the network; its weights may be shared out over ranks.
      context_length: longest sequence, prompt and response together.
      vocabulary: tokens the output head knows.
    """

    model: PreTrainedModel
    context_length: int
    vocabulary: int

    def backward(self, loss: torch.Tensor, *, last: bool = True) -> None:
        """Add the gradient of a 0-d loss to what is accumulated, which is summed over ranks.

        Args:
          last: what comes next is `step` or `discard`, on all ranks.
        """
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
        """Write a model directory with the optimiser's state, atomically; all ranks together."""
        ...

    def close(self) -> None:
        """Give the memory back; nothing else is called after this."""
        ...


def update(
    engine: Engine,
    batch: Sequence[Example],
    objective: Objective,
    size: int,
    learning_rate: float,
    layout: Layout = padded,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """One optimiser step on a batch, in forward passes as large as `size` examples.

    Every share of the loss is divided by counts of the whole batch, which all ranks know, so how it is split over
    passes and ranks does not matter (but for rounding, and for `whiten="micro-batch"`). A batch without a kept token,
    or with a mean ratio above the limit, moves nothing: `skipped/empty` or `skipped/ratio` is 1.

    Returns:
      Metrics, named as TRL names them; means are over kept tokens. `tokens/fed` counts what the model reads, padding
      included, and `tokens/trained` the kept tokens; `tokens/fed_per_trained` is what one of them costs.

    Raises:
      FloatingPointError: the loss or the gradient is not finite; the weights are as they were.
    """
    metrics = batch_metrics(batch)
    whole = BatchTotals.of(batch, objective)
    if whole.tokens == 0:
        return metrics | {"skipped/empty": 1.0}
    totals: dict[str, torch.Tensor] = {}
    fed = 0
    for work, last in ranks.lockstep(_groups(batch, size, objective, layout, ranks.subset)):
        if work is None:
            engine.backward(_idle(engine), last=last)
            continue
        group, inputs = work
        loss, sums = micro_batch_loss(objective, group, engine.score(inputs, objective.temperature), whole)
        engine.backward(loss, last=last)
        fed += inputs.input_ids.size
        for name, value in sums.items():  # tensors: one copy from the device per step, not per pass
            add = torch.maximum if name == MAX_METRIC else torch.add
            totals[name] = add(totals[name], value) if name in totals else value
    values = torch.stack([value.double() for value in totals.values()]).tolist() if totals else []
    found = dict(zip(totals, values, strict=True))
    largest = found.pop(MAX_METRIC, 0.0)
    metrics |= ranks.sum({"tokens/fed": float(fed)} | found)
    if whole.compared:
        metrics |= {MAX_METRIC: max(ranks.gather(largest)), "mismatch/tokens": float(whole.compared)}
        metrics["mismatch/error"] = multiplicative_error(metrics["mismatch/logp_difference_mean"])
    metrics["tokens/fed_per_trained"] = metrics["tokens/fed"] / whole.tokens
    if not math.isfinite(metrics["loss"]):
        engine.discard()
        raise FloatingPointError(f"the loss is {metrics['loss']}")
    if metrics["ratio/mean"] > objective.max_ratio:
        engine.discard()
        return metrics | {"skipped/ratio": 1.0}
    return metrics | {"grad_norm": engine.step(learning_rate), "learning_rate": learning_rate}


def score_all(
    engine: Scorer,
    examples: Sequence[Example],
    size: int,
    temperature: float,
    layout: Layout = padded,
    ranks: Ranks = ALONE,
) -> Iterator[tuple[int, NDArray[np.floating]]]:
    """Log-probabilities of the kept tokens, without gradient: pairs of an example's index and its [M].

    Each rank gives those of its share.
    """
    with torch.no_grad():
        for work, _ in ranks.lockstep(layout(examples, size, ranks.subset)):
            if work is None:
                _idle(engine)
                continue
            group, inputs = work
            flat = engine.score(inputs, temperature).logprobs.cpu().numpy()
            ends = np.cumsum([examples[index].kept.size for index in group])
            yield from zip(group, np.split(flat, ends[:-1]), strict=True)


def _idle(engine: Scorer) -> torch.Tensor:
    """A pass that adds nothing, for a rank that has none while others do: a loss of 0."""
    token = np.zeros((1, 1), np.int64)
    return engine.score(MicroBatch(token, token[0], token[0]), 1.0).logprobs.sum() * 0.0


def _groups(
    batch: Sequence[Example], size: int, objective: Objective, layout: Layout, part: RankSubset
) -> Iterator[tuple[MicroBatchExamples, MicroBatch]]:
    """A part's forward passes, with the advantages as the loss takes them."""
    advantages = [example.advantages for example in batch]
    if objective.whiten == "batch":
        ends = np.cumsum([values.size for values in advantages])
        advantages = np.split(statistics.whiten(np.concatenate(advantages)), ends[:-1])
    for indices, inputs in layout(batch, size, part):
        values = np.concatenate([advantages[index] for index in indices])
        if objective.whiten == "micro-batch":
            values = statistics.whiten(values)
        yield MicroBatchExamples(indices, [batch[index] for index in indices], values), inputs


def batch_metrics(batch: Sequence[Example]) -> dict[str, float]:
    """What is known of a batch before the model sees it: reward, mask, advantages, counts."""
    advantages = np.concatenate([example.advantages for example in batch])
    rewards = [example.reward for example in batch if not math.isnan(example.reward)]
    response_tokens = sum(example.response_tokens for example in batch)
    figures = {
        "num_tokens": float(sum(example.tokens.size for example in batch)),
        "segments/count": float(sum(example.segments for example in batch)),
        "mask/fraction": advantages.size / max(response_tokens, 1),
        "tokens/trained": float(advantages.size),
        "tokens/fed": 0.0,
    }
    if rewards:
        figures["reward"] = float(np.mean(rewards))
    if advantages.size:
        figures |= {"advantages/mean": float(advantages.mean()), "advantages/std": float(advantages.std())}
    return figures


def learning_rate_factor(
    position: int, total: int, warmup: int, kind: Literal["constant", "linear", "cosine"]
) -> float:
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
