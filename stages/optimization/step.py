"""Run one policy step, the same on every optimization engine; define the protocol of those engines.

An engine scores chosen tokens, accumulates gradients, steps and saves. It does not depend on advantages and ratios,
which `stages.optimization.objective` turns into a loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.core.paths import AnyPath
from stages.maths import statistics
from stages.maths.mismatch import multiplicative_error
from stages.optimization.batches import Example, Layout, MicroBatch, RankSubset, padded
from stages.optimization.head import Scored
from stages.optimization.objective import (
    MAX_METRIC,
    BatchTotals,
    MicroBatchExamples,
    Objective,
    TokenFigures,
    micro_batch_loss,
)
from stages.optimization.ranks import ALONE, Ranks


class Scorer(Protocol):
    """A policy whose tokens can be scored."""

    def score(self, batch: MicroBatch, temperature: float) -> Scored:
        """Return log-probability and entropy of every kept token [M], at least float32.

        Differentiable outside `torch.no_grad`.
        """
        ...


class Engine(Scorer, Protocol):
    """A policy that can be scored and trained.

    Attributes:
      model: the network; its weights may be distributed over ranks.
      context_length: longest sequence, prompt and response together, in tokens.
      vocabulary: number of tokens of the output head.
    """

    model: PreTrainedModel
    context_length: int
    vocabulary: int

    def backward(self, loss: torch.Tensor, *, last: bool = True) -> None:
        """Add the gradient of a 0-d loss to the accumulated gradient, which is a sum over ranks.

        Args:
          last: the next call is `step` or `discard`, on all ranks.
        """
        ...

    def step(self, learning_rate: float) -> float:
        """Clip the gradient, update the weights, clear the gradient. Return the gradient's norm before clipping.

        Raises:
          FloatingPointError: the norm is not finite; the weights are unchanged.
        """
        ...

    def discard(self) -> None:
        """Clear the accumulated gradient."""
        ...

    def save(
        self,
        directory: AnyPath,
        tokenizer: PreTrainedTokenizerBase,
        write_more: Callable[[Path], None],
    ) -> None:
        """Write a model directory with the optimizer's state, atomically. All ranks must call it."""
        ...

    def close(self) -> None:
        """Free the memory; no other method may be called afterwards."""
        ...


@dataclass(frozen=True, eq=False)
class KeptTokens:
    """What a step computed about the kept tokens of one example, each [M].

    Attributes:
      index: index of the example in the batch.
      advantage: advantages of the loss, whitened if the objective says so.
      current, old, entropy, ratio, clipped: as in `objective.TokenFigures`.
    """

    index: int
    advantage: NDArray[np.floating]
    current: NDArray[np.floating]
    old: NDArray[np.floating]
    entropy: NDArray[np.floating]
    ratio: NDArray[np.floating]
    clipped: NDArray[np.bool_]


def update(
    engine: Engine,
    batch: Sequence[Example],
    objective: Objective,
    size: int,
    learning_rate: float,
    layout: Layout = padded,
    ranks: Ranks = ALONE,
    record: Callable[[list[KeptTokens]], None] | None = None,
) -> dict[str, float]:
    """Take one optimizer step on a batch, in forward passes of about `size` examples.

    Every contribution to the loss is divided by counts of the whole batch, which all ranks know. The split over passes
    and ranks therefore changes only rounding (except with `whiten="micro-batch"`). The weights stay unchanged for a
    batch without a kept token or with a mean ratio above the limit: `skipped/empty` or `skipped/ratio` is 1.

    Args:
      record: receives what the step computed about the kept tokens of all examples that have one, in the order of the
        batch and on every rank, before the weights change.

    Returns:
      Metrics with TRL's names; means are over kept tokens. `tokens/fed` counts tokens that the model reads, including
      padding; `tokens/trained` counts kept tokens; `tokens/fed_per_trained` is their quotient.

    Raises:
      FloatingPointError: the loss or the gradient is not finite; the weights are unchanged.
    """
    metrics = batch_metrics(batch)
    totals = BatchTotals.of(batch, objective)
    if totals.tokens == 0:
        return metrics | {"skipped/empty": 1.0}
    micro_batches = _micro_batches(batch, size, objective, layout, ranks.subset)
    tokens: list[KeptTokens] | None = None if record is None else []
    found = _accumulate_gradient(engine, micro_batches, objective, totals, ranks, tokens)
    if record is not None:
        record(sorted((one for own in ranks.gather(tokens or []) for one in own), key=lambda one: one.index))
    largest = found.pop(MAX_METRIC, 0.0)
    metrics |= ranks.sum(found)
    if totals.compared:
        metrics |= {MAX_METRIC: max(ranks.gather(largest)), "mismatch/tokens": float(totals.compared)}
        metrics["mismatch/error"] = multiplicative_error(metrics["mismatch/logp_difference_mean"])
    metrics["tokens/fed_per_trained"] = metrics["tokens/fed"] / totals.tokens
    if not math.isfinite(metrics["loss"]):
        engine.discard()
        raise FloatingPointError(f"the loss is {metrics['loss']}")
    if metrics["ratio/mean"] > objective.max_ratio:
        engine.discard()
        return metrics | {"skipped/ratio": 1.0}
    return metrics | {"grad_norm": engine.step(learning_rate), "learning_rate": learning_rate}


def _accumulate_gradient(
    engine: Engine,
    micro_batches: Iterator[tuple[MicroBatchExamples, MicroBatch]],
    objective: Objective,
    totals: BatchTotals,
    ranks: Ranks,
    tokens: list[KeptTokens] | None,
) -> dict[str, float]:
    """Run this rank's forward and backward passes; return its contribution to each metric.

    Args:
      tokens: receives the figures of the kept tokens of this rank's examples.
    """
    sums: dict[str, torch.Tensor] = {}
    forward_tokens = 0
    for work, last in ranks.lockstep(micro_batches):
        if work is None:
            engine.backward(_idle_loss(engine), last=last)
            continue
        group, inputs = work
        scored = engine.score(inputs, objective.temperature)
        loss, contributions, figures = micro_batch_loss(objective, group, scored, totals)
        engine.backward(loss, last=last)
        if tokens is not None:
            tokens += _by_example(group, figures)
        forward_tokens += inputs.input_ids.size
        for name, value in contributions.items():
            add = torch.maximum if name == MAX_METRIC else torch.add
            sums[name] = add(sums[name], value) if name in sums else value
    # The sums stay tensors until here: one copy from the device per step instead of one per pass.
    values = torch.stack([value.double() for value in sums.values()]).tolist() if sums else []
    return {"tokens/fed": float(forward_tokens)} | dict(zip(sums, values, strict=True))


def _by_example(group: MicroBatchExamples, figures: TokenFigures) -> Iterator[KeptTokens]:
    """Yield the figures of a pass, divided among its examples."""
    ends = np.cumsum([example.kept.size for example in group.examples])[:-1]
    columns = [np.split(column.cpu().numpy(), ends) for column in figures]
    own = zip(group.indices, np.split(group.advantages, ends), *columns, strict=True)
    yield from (KeptTokens(*one) for one in own)


def score_all(
    engine: Scorer,
    examples: Sequence[Example],
    size: int,
    temperature: float,
    layout: Layout = padded,
    ranks: Ranks = ALONE,
    *,
    entropy: bool = False,
) -> Iterator[tuple[int, NDArray[np.floating]]]:
    """Yield log-probabilities (or entropies) of the kept tokens without gradient: index of an example, and its [M].

    Each rank yields those of its own subset.
    """
    with torch.no_grad():
        for work, _ in ranks.lockstep(layout(examples, size, ranks.subset)):
            if work is None:
                _idle_loss(engine)
                continue
            group, inputs = work
            scored = engine.score(inputs, temperature)
            flat = (scored.entropy if entropy else scored.logprobs).cpu().numpy()
            ends = np.cumsum([examples[index].kept.size for index in group])
            yield from zip(group, np.split(flat, ends[:-1]), strict=True)


def _idle_loss(engine: Scorer) -> torch.Tensor:
    """Run a pass with loss 0, for a rank without passes while others have some."""
    token = np.zeros((1, 1), np.int64)
    return engine.score(MicroBatch(token, token[0], token[0]), 1.0).logprobs.sum() * 0.0


def _micro_batches(
    batch: Sequence[Example], size: int, objective: Objective, layout: Layout, subset: RankSubset
) -> Iterator[tuple[MicroBatchExamples, MicroBatch]]:
    """Yield the passes of a subset, with advantages whitened as the objective says."""
    advantages = [example.advantages for example in batch]
    if objective.whiten == "batch":
        ends = np.cumsum([values.size for values in advantages])
        advantages = np.split(statistics.whiten(np.concatenate(advantages)), ends[:-1])
    for indices, inputs in layout(batch, size, subset):
        values = np.concatenate([advantages[index] for index in indices])
        if objective.whiten == "micro-batch":
            values = statistics.whiten(values)
        yield MicroBatchExamples(indices, [batch[index] for index in indices], values), inputs


def batch_metrics(batch: Sequence[Example]) -> dict[str, float]:
    """Return the metrics that do not depend on the model: reward, mask, advantages, counts."""
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
        figures |= {"reward": float(np.mean(rewards)), "responses/graded": float(len(rewards))}
    if advantages.size:
        figures |= {"advantages/mean": float(advantages.mean()), "advantages/std": float(advantages.std())}
    return figures


def learning_rate_factor(
    position: int, total: int, warmup: int, kind: Literal["constant", "linear", "cosine"]
) -> float:
    """Return the factor on the peak learning rate: it rises over `warmup` steps, then stays, or falls to 0 at `total`.

    Args:
      position: steps taken before this one; the first step of a warm-up of n steps has the factor 1/n.
    """
    if position < warmup:
        return (position + 1) / warmup
    if kind == "constant":
        return 1.0
    done = min((position - warmup) / max(total - warmup, 1), 1.0)
    return 1.0 - done if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
