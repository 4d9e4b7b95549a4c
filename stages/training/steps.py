"""Run the optimizer steps of a training call: batches, learning rates, metrics, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from stages.configs.train import LearningOptions
from stages.core.errors import UserError
from stages.core.progress import Progress
from stages.maths.randomness import random_key
from stages.optimization.step import learning_rate_factor
from stages.training import mismatch
from stages.training.resumable import Metrics, ModelWriter, ResumableRun
from stages.training.starting_point import SCHEDULE_STEPS

Step = Callable[[int, Sequence[int], float], dict[str, float]]
"""One optimizer step: its number in the call (from 0), a batch (indices of examples), a learning rate → metrics, among
them `num_tokens`."""

# Metrics whose means over the steps are in the closing summary and the lineage → the metric that counts what each is a
# mean of in a step (None: a step counts once). Steps differ in size, so their means are weighted by it.
_MEANS = {
    "reward": "responses/graded",
    "loss": None,
    "kl": "tokens/trained",
    "entropy": "tokens/trained",
    "clip_ratio/region_mean": "tokens/trained",
    "distill/weight_mean": None,
    "distill/weight_clipped": None,
    "grad_norm": None,
    "mask/fraction": None,
    "critic/loss": None,
    "critic/explained_variance": None,
}


@dataclass(frozen=True)
class LearningRates:
    """The schedule of the learning rate.

    Attributes:
      peak: highest learning rate.
      kind: course after the warm-up.
      warmup_ratio: length of the warm-up as a fraction of the schedule.
      warmup_steps: length of the warm-up in steps; None: given by `warmup_ratio`.
      total: length of the schedule in steps, over all calls that continue one optimizer; None: the steps of one call.
      before: steps that the earlier calls took.
    """

    peak: float
    kind: Literal["constant", "linear", "cosine"] = "constant"
    warmup_ratio: float = 0.0
    warmup_steps: int | None = None
    total: int | None = None
    before: int = 0

    @classmethod
    def from_options(cls, options: LearningOptions, before: int) -> LearningRates:
        """Return the schedule that the options describe."""
        return cls(
            options.learning_rate,
            options.lr_scheduler_type,
            options.warmup_ratio,
            options.warmup_steps,
            options.total_steps,
            before,
        )

    def at(self, number: int, steps: int) -> float:
        """Return the learning rate of step `number`, from 0, of a call with `steps` steps."""
        total, before = (self.total, self.before) if self.total else (steps, 0)
        warmup = math.ceil(self.warmup_ratio * total) if self.warmup_steps is None else self.warmup_steps
        return self.peak * learning_rate_factor(before + number, total, warmup, self.kind)


def plan_batches(
    ids: Sequence[str], seed: int, epochs: int, size: int, groups: Sequence[str] | None = None
) -> list[list[int]]:
    """Return the indices of the examples of each optimizer step; every epoch has an order drawn from (seed, epoch, id).

    The order does not depend on how an artefact was divided into parts. The last batch of an epoch may be smaller.

    Args:
      size: number of examples in a batch.
      groups: name of each example's group. Groups are shuffled and their examples stay adjacent, so that a step
        computes their common prefix once. Default: every example is its own group.
    """
    names = ids if groups is None else groups
    batches = []
    for epoch in range(epochs):
        key_of = {name: random_key(seed, "order", epoch, name) for name in {*ids, *names}}
        order = sorted(range(len(ids)), key=lambda index: (key_of[names[index]], key_of[ids[index]]))
        batches += [order[first : first + size] for first in range(0, len(ids), size)]
    return batches


def take_steps(
    step: Step,
    rates: LearningRates,
    batches: Sequence[Sequence[int]],
    writer: ModelWriter,
    tokenizer: PreTrainedTokenizerBase,
    resumable: ResumableRun,
    save_steps: int | None,
    progress: Progress,
) -> Metrics:
    """Take one optimizer step per batch, starting after the last checkpoint; return the metrics of all steps.

    Args:
      writer: writes the checkpoints.
      save_steps: steps between checkpoints; None: `resumable.SAVE_SECONDS` between them.

    Raises:
      UserError: a loss or gradient is not finite; the message names the step.
    """
    metrics = resumable.metrics
    progress.start("train", sum(map(len, batches)), "trajectories")
    progress.advance(sum(map(len, batches[: len(metrics)])))
    for number in range(len(metrics), len(batches)):
        began = time.monotonic()
        try:
            figures = step(number, batches[number], rates.at(number, len(batches)))
        except FloatingPointError as error:
            raise UserError(
                f"step {number + 1} of {len(batches)}: {error}; take a lower --learning-rate, or another model if this "
                "is the first step"
            ) from error
        tokens, seconds = figures["num_tokens"], time.monotonic() - began
        before = metrics[-1]["num_tokens"] if metrics else 0.0
        line = {"step": number + 1, **figures, "num_tokens": before + tokens}
        if number == 0:  # a warning per step would hide everything else; the closing summary repeats it
            for note in mismatch.warn(figures):
                resumable.warn(note, progress)
        metrics.append(line | {"step_time": seconds, "tokens_per_second": tokens / seconds})
        resumable.log(metrics[-1])
        shown: dict[str, Any] = {name: figures[name] for name in ("reward", "loss", "kl") if name in figures}
        progress.advance(len(batches[number]), int(tokens), **shown)
        if number + 1 < len(batches):
            resumable.save_if_due(writer, tokenizer, metrics, save_steps)
    return metrics


def count_steps(metrics: Metrics, before: int) -> dict[str, int]:
    """Return the counts for the lineage; `before` is the number of steps of the calls that this one continues."""

    def total(name: str) -> int:
        return int(sum(line.get(name, 0.0) for line in metrics))

    return {
        "tokens": int(metrics[-1]["num_tokens"]) if metrics else 0,
        "kept_tokens": total("tokens/trained"),
        "fed_tokens": total("tokens/fed"),
        "steps": len(metrics),
        "steps_skipped_ratio": total("skipped/ratio"),
        "steps_skipped_empty": total("skipped/empty"),
        SCHEDULE_STEPS: before + len(metrics),
    }


def summarize(metrics: Metrics) -> dict[str, float]:
    """Return the figures of the closing summary: number of steps, means over them, forward tokens per trained token."""
    skipped = sum("skipped/ratio" in line or "skipped/empty" in line for line in metrics)
    figures = {"steps": float(len(metrics)), "steps/skipped": float(skipped)}
    for name, count in _MEANS.items():
        lines = [line for line in metrics if name in line]
        weights = [line.get(count, 1.0) if count else 1.0 for line in lines]
        if sum(weights):
            figures[name] = sum(w * line[name] for w, line in zip(weights, lines, strict=True)) / sum(weights)
    forward_tokens = sum(line["tokens/fed"] for line in metrics)
    trained_tokens = sum(line["tokens/trained"] for line in metrics)
    if trained_tokens:
        figures["tokens/fed_per_trained"] = forward_tokens / trained_tokens
    return figures | mismatch.summarize(metrics)
