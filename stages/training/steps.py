"""Owns the course of a policy's training: in which batches, at what learning rates, step by step; and what it tells."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from stages.configs.train import PaceOptions
from stages.core.errors import UserError
from stages.core.progress import Progress
from stages.maths.randomness import random_key
from stages.optimization.step import schedule
from stages.training import mismatch
from stages.training.resumable import Metrics, ModelWriter, ResumableRun
from stages.training.starting_point import SCHEDULE_STEPS

Step = Callable[[Sequence[int], float], dict[str, float]]
"""One optimiser step on a batch (numbers of examples) at a learning rate → metrics, `num_tokens` among them."""

_MEANS = (
    "reward",
    "loss",
    "kl",
    "entropy",
    "clip_ratio/region_mean",
    "distill/weight_mean",
    "distill/weight_clipped",
    "grad_norm",
    "mask/fraction",
    "critic/loss",
    "critic/explained_variance",
)


@dataclass(frozen=True)
class Rates:
    """The learning rate of each step of a call.

    Attributes:
      peak: the highest.
      kind: what follows the warm-up.
      warmup_ratio, warmup_steps: how long it warms up: a share of the schedule, or so many steps in its place.
      total: steps of the schedule over all calls that continue one optimiser; None: each call has its own.
      before: steps that the earlier ones took.
    """

    peak: float
    kind: Literal["constant", "linear", "cosine"] = "constant"
    warmup_ratio: float = 0.0
    warmup_steps: int | None = None
    total: int | None = None
    before: int = 0

    @classmethod
    def of(cls, options: PaceOptions, before: int) -> Rates:
        """As the options say."""
        return cls(
            options.learning_rate,
            options.lr_scheduler_type,
            options.warmup_ratio,
            options.warmup_steps,
            options.total_steps,
            before,
        )

    def at(self, number: int, steps: int) -> float:
        """Of step `number`, from 0, of a call of `steps`."""
        total, before = (self.total, self.before) if self.total else (steps, 0)
        warmup = math.ceil(self.warmup_ratio * total) if self.warmup_steps is None else self.warmup_steps
        return self.peak * schedule(before + number, total, warmup, self.kind)


def plan_batches(
    ids: Sequence[str], seed: int, epochs: int, size: int, groups: Sequence[str] | None = None
) -> list[list[int]]:
    """The examples of each optimiser step: every epoch in an order drawn from (seed, epoch, id).

    So the order does not depend on how an artefact was cut into parts. The last batch of an epoch may be smaller.

    Args:
      groups: examples of one name stay side by side, so that a step shares what they have in common, and the groups
        are shuffled; left out, each example by itself.
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
    rates: Rates,
    batches: Sequence[Sequence[int]],
    work: ModelWriter,
    tokenizer: PreTrainedTokenizerBase,
    unfinished: ResumableRun,
    save_steps: int | None,
    progress: Progress,
) -> Metrics:
    """One optimiser step per batch, from the last checkpoint on; the metrics of all steps.

    Raises:
      UserError: a loss or gradient that is not finite, naming the step.
    """
    metrics = unfinished.metrics
    progress.start("train", sum(map(len, batches)), "trajectories")
    progress.advance(sum(map(len, batches[: len(metrics)])))
    for number in range(len(metrics), len(batches)):
        began = time.monotonic()
        try:
            figures = step(batches[number], rates.at(number, len(batches)))
        except FloatingPointError as error:
            raise UserError(
                f"step {number + 1} of {len(batches)}: {error}; take a lower --learning-rate, or another model if this "
                "is its first step"
            ) from error
        tokens, seconds = figures["num_tokens"], time.monotonic() - began
        before = metrics[-1]["num_tokens"] if metrics else 0.0
        line = {"step": number + 1, **figures, "num_tokens": before + tokens}
        for note in mismatch.warn(figures) if not number else ():
            progress.note(note)
        metrics.append(line | {"step_time": seconds, "tokens_per_second": tokens / seconds})
        unfinished.log(metrics[-1])
        shown = {name: figures[name] for name in ("reward", "loss", "kl") if name in figures}
        progress.advance(len(batches[number]), int(tokens), **shown)
        if number + 1 < len(batches):
            unfinished.save_if_due(work, tokenizer, metrics, save_steps)
    return metrics


def count_steps(metrics: Metrics, before: int) -> dict[str, int]:
    """Whole numbers for the lineage; `before` are the steps of the calls that this one continues."""

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
    """What the closing summary tells: how many steps there were, means over them, and what a trained token cost."""
    skipped = sum("skipped/ratio" in line or "skipped/empty" in line for line in metrics)
    figures = {"steps": float(len(metrics)), "steps/skipped": float(skipped)}
    for name in _MEANS:
        values = [line[name] for line in metrics if name in line]
        if values:
            figures[name] = sum(values) / len(values)
    fed, trained = (sum(line[f"tokens/{what}"] for line in metrics) for what in ("fed", "trained"))
    if trained:
        figures["tokens/fed_per_trained"] = fed / trained
    return figures | mismatch.summarize(metrics)
