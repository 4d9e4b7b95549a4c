"""`spo sft`: warm-start a model on a task's worked solutions → a model directory.

    loss of a step = − (sum of log p(token) over the responses of the batch, end tokens included) / (their tokens)

The model is a Hugging Face directory, or one made from scratch (`--preset`). Unfinished work lies beside the output as
`.NAME.progress/`, whole every `save_every` steps; a killed run resumes there and ends with bitwise the same weights.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stages.config import option, validate
from stages.errors import UserError
from stages.progress import Progress, Silent, Summary

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from stages.engines.batches import Example
    from stages.engines.torch import TorchEngine
    from stages.shards.lineage import Lineage
    from stages.tasks import Task

METRICS_FILE = "metrics.jsonl"
_WINDOW = 64  # batches whose examples are sorted by length together: little padding, and the order stays random


@dataclass(frozen=True, kw_only=True)
class Config:
    """What `spo sft` is told."""

    out: Path = option("The model directory that is written.", result=False, short="--output-dir")
    model: str | None = option(
        "Start from this model: a Hugging Face directory, or a name on the hub.", default=None, result=False, short="-m"
    )
    preset: Literal["tiny", "small"] | None = option(
        "Start from scratch instead: tiny (0.1 million parameters, for arithmetic) or small (4 million). "
        "Qwen2 over bytes, so that it reads any text.",
        default=None,
    )
    task: str = option("Where the worked solutions come from: arithmetic or gsm8k.")
    data: str | None = option(
        "The task's data: a Parquet or JSONL file, a directory of them, or a name on the hub.",
        default=None,
        result=False,
    )
    task_arg: tuple[str, ...] = option("An option of the task, as key=value; may be repeated.", default=())
    split: Literal["train", "validation", "test"] = option("Which questions.", default="train")
    num_examples: int | None = option(
        "Solutions to learn from; left out, as many as the steps need, or all of the split.", default=None, minimum=1
    )
    epochs: float = option("Passes over them.", default=1.0, above=0)
    steps: int | None = option("Optimiser steps; given, it takes the place of epochs.", default=None, minimum=1)
    batch_size: int = option("Examples per optimiser step.", default=32, minimum=1)
    per_device_batch_size: int | None = option(
        "Examples per forward pass; left out, the whole batch.", default=None, minimum=1, result=False
    )
    learning_rate: float | None = option(
        "Peak learning rate; left out, 3e-3 from scratch and 1e-5 for a model that is given.", default=None, above=0
    )
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = option(
        "How the learning rate falls to 0 after the warm-up.", default="cosine"
    )
    warmup_ratio: float = option("Share of the steps in which it rises from 0.", default=0.05, minimum=0, maximum=1)
    adam_beta1: float = option("AdamW's decay of the mean gradient.", default=0.9, minimum=0, maximum=0.9999)
    adam_beta2: float = option("AdamW's decay of the squared gradient.", default=0.98, minimum=0, maximum=0.99999)
    weight_decay: float = option("AdamW's weight decay; vectors are not decayed.", default=0.0, minimum=0)
    max_grad_norm: float = option("The gradient is clipped to this norm.", default=1.0, above=0)
    seed: int = option("Of the weights (from scratch) and of the order of the examples.", default=0)
    device: str = option("auto, cpu, cuda or cuda:N.", default="auto", result=False)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "Number format of the computation; the weights are float32. auto is bfloat16 where the device has it.",
        default="auto",
    )
    gradient_checkpointing: bool = option(
        "Recompute activations in the backward pass: less memory, more time.", default=False, result=False
    )
    threads: int | None = option(
        "CPU threads; left out, torch decides. A tiny model is fastest with 1.", default=None, result=False, minimum=1
    )
    save_every: int = option(
        "Steps between two states to resume from: the most that a killed run loses.",
        default=500,
        minimum=1,
        result=False,
    )
    overwrite: bool = option("Replace a model made with another configuration.", default=False, result=False)

    def __post_init__(self) -> None:
        validate(self)
        if (self.model is None) == (self.preset is None):
            raise UserError("give either --model (a model to start from) or --preset (a model made from scratch)")

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate that is meant where none is given."""
        return self.learning_rate or (3e-3 if self.preset else 1e-5)


def run(config: Config, progress: Progress = Silent()) -> Summary:
    """Trains the model and writes its directory.

    Raises:
      UserError: wrong options, an unusable model, no worked solution that fits the context, a full disk.
      FingerprintMismatch: the directory, or unfinished work beside it, was made with another configuration.
      Interrupted: a signal; the same command resumes at the last saved state.
    """
    from stages.engines import checkpoints
    from stages.shards.lineage import Source, describe, model_source
    from stages.shards.sharding import interruptible
    from stages.tasks import open_task

    started = time.monotonic()
    task = open_task(config.task, config.data, config.task_arg)
    base = checkpoints.resolve(config.model) if config.model else None
    lineage = describe(
        "sft",
        None,
        config,
        inputs=(Source(config.data or config.task, task.digest, "task"),),
        model=model_source(config.model, checkpoints.digest(base), config.out) if config.model and base else None,
        packages=("torch", "transformers"),
    )
    if checkpoints.up_to_date(config.out, lineage, config.overwrite):
        progress.note(f"{config.out} is up to date")
        return Summary("sft", str(config.out), 0, time.monotonic() - started, up_to_date=True)
    with interruptible(), checkpoints.unfinished_work(config.out) as unfinished:
        trainer = _prepare(config, task, base, lineage, unfinished, progress)
        trainer.train(progress)
        trainer.finish()
    figures = {"steps": trainer.steps, "loss": trainer.metrics[-1]["loss"], "tokens": trainer.tokens}
    seconds = time.monotonic() - started
    return Summary("sft", str(config.out), len(trainer.examples), seconds, figures=figures, notes=trainer.notes)


def _prepare(
    config: Config, task: Task, base: Path | None, lineage: Lineage, unfinished: Path, progress: Progress
) -> _Trainer:
    """Load or make the model and its optimiser, resume where a state is saved, and tokenise the examples."""
    import torch

    from stages.engines import checkpoints
    from stages.engines.presets import make_model
    from stages.engines.torch import Adam, TorchEngine, open_engine

    if config.threads:
        torch.set_num_threads(config.threads)
    adam = Adam(
        config.adam_beta1,
        config.adam_beta2,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
    )
    saved = _last_state(unfinished, lineage, config.overwrite)
    if directory := saved or base:
        tokenizer = checkpoints.load_tokenizer(directory)
        engine = open_engine(
            directory,
            adam,
            device=config.device,
            dtype=config.dtype,
            gradient_checkpointing=config.gradient_checkpointing,
            continue_optimiser=saved is not None,
        )
    else:
        device = checkpoints.pick_device(config.device)
        model, tokenizer = make_model(config.preset or "tiny", config.seed)
        engine = TorchEngine(
            model.to(device),  # pyright: ignore[reportArgumentType]
            adam,
            compute=checkpoints.pick_dtype(config.dtype, device),
            gradient_checkpointing=config.gradient_checkpointing,
        )
    examples, notes = _load_examples(config, task, tokenizer, engine.context_length)
    metrics = [json.loads(line) for line in (saved / METRICS_FILE).read_text().splitlines()] if saved else []
    if saved:
        progress.note(f"resumed after step {len(metrics)}")
    return _Trainer(config, engine, tokenizer, examples, notes, lineage, unfinished, metrics)


@dataclass
class _Trainer:
    """A run in hand: step number len(metrics) is the next."""

    config: Config
    engine: TorchEngine
    tokenizer: PreTrainedTokenizerBase
    examples: list[Example]
    notes: tuple[str, ...]
    lineage: Lineage
    unfinished: Path
    metrics: list[dict[str, float]]

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.examples) / self.config.batch_size)

    @property
    def steps(self) -> int:
        return self.config.steps or max(1, round(self.config.epochs * self.steps_per_epoch))

    @property
    def tokens(self) -> int:
        """Response tokens learned from so far, repetitions included."""
        return int(self.metrics[-1]["num_tokens"]) if self.metrics else 0

    def train(self, progress: Progress) -> None:
        done = len(self.metrics)
        progress.start("sft", self.steps, "steps")
        progress.advance(done)
        epoch, batches = -1, []
        for step in range(done, self.steps):
            if epoch != step // self.steps_per_epoch:
                epoch = step // self.steps_per_epoch
                batches = _epoch(self.examples, self.config.batch_size, self.config.seed, epoch)
            before = self.tokens
            self.metrics.append(self._step(step, [self.examples[i] for i in batches[step % self.steps_per_epoch]]))
            progress.advance(1, self.tokens - before, loss=self.metrics[-1]["loss"])
            if (step + 1) % self.config.save_every == 0 and step + 1 < self.steps:
                self._save_state()

    def _step(self, step: int, batch: Sequence[Example]) -> dict[str, float]:
        """One optimiser step. Learning from demonstrations is a policy gradient in which every advantage is 1."""
        from stages.engines.batches import collate, micro_batches

        config = self.config
        tokens = sum(example.kept.size for example in batch)
        total = 0.0
        for group in micro_batches(batch, config.per_device_batch_size or config.batch_size):
            scored = self.engine.score(collate([batch[i] for i in group]), temperature=1.0)
            loss = -scored.logprobs.sum() / tokens
            self.engine.backward(loss)
            total += loss.item()
        rate = learning_rate(step, self.steps, config.peak_learning_rate, config.warmup_ratio, config.lr_scheduler_type)
        try:
            norm = self.engine.step(rate)
        except FloatingPointError as error:
            raise UserError(
                f"step {step + 1}: {error}, the loss is {total:.4g}; take a lower --learning-rate or --dtype float32"
            ) from error
        return {
            "step": step + 1,
            "loss": total,
            "learning_rate": rate,
            "grad_norm": norm,
            "num_tokens": self.tokens + tokens,
        }

    def _save_state(self) -> None:
        """Put a complete directory under the unfinished work, then drop the older ones."""
        directory = self.unfinished / f"step-{len(self.metrics):08d}"
        self.engine.save(directory, self.tokenizer, self.lineage, self._write_metrics)
        for other in self.unfinished.glob("step-*"):
            if other != directory:
                shutil.rmtree(other)

    def finish(self) -> None:
        """Write the model directory; the optimiser's state is of this loss and stays behind."""
        from stages.engines import checkpoints

        checkpoints.save_directory(
            self.config.out, self.engine.model, self.tokenizer, self.lineage, self._write_metrics
        )

    def _write_metrics(self, directory: Path) -> None:
        lines = [json.dumps(line) + "\n" for line in self.metrics]
        (directory / METRICS_FILE).write_text("".join(lines))


def learning_rate(step: int, steps: int, peak: float, warmup_ratio: float, schedule: str) -> float:
    """The learning rate of step `step` of `steps` (from 0): a linear rise, then the schedule's fall to 0."""
    warmup = round(warmup_ratio * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    gone = (step - warmup) / max(1, steps - warmup)
    return peak * {"cosine": (1 + math.cos(math.pi * gone)) / 2, "linear": 1 - gone, "constant": 1.0}[schedule]


def _last_state(unfinished: Path, lineage: Lineage, overwrite: bool) -> Path | None:
    """The directory to resume from, if an earlier run of the same configuration left one."""
    from stages.engines import checkpoints

    states = sorted(unfinished.glob("step-*"))
    if not states:
        return None
    return states[-1] if checkpoints.up_to_date(states[-1], lineage, overwrite) else None


def _load_examples(
    config: Config, task: Task, tokenizer: PreTrainedTokenizerBase, context_length: int
) -> tuple[list[Example], tuple[str, ...]]:
    """Tokenised demonstrations, and what was left out.

    Raises:
      UserError: none is left.
    """
    from stages.tasks.selection import select

    count = config.num_examples
    if count is None and config.steps:
        count = min(config.steps * config.batch_size, len(task.questions(config.split)))
    questions = select(task, config.split, count)
    pairs = [(question.prompt, question.solution) for question in questions if question.solution is not None]
    if not pairs:
        raise UserError(
            f"task {task.name} has no worked solutions in {config.data or 'its questions'}; nothing to learn"
        )
    examples = encode_examples(tokenizer, pairs)
    short = [example for example in examples if example.tokens.size <= context_length]
    if not short:
        raise UserError(
            f"every example is longer than the model's context of {context_length} tokens "
            f"(the shortest has {min(example.tokens.size for example in examples)}); take a model with a longer one"
        )
    left_out = {
        "questions without a worked solution": len(questions) - len(pairs),
        f"examples longer than the context of {context_length} tokens": len(pairs) - len(short),
    }
    return short, tuple(f"left out {number} {what}" for what, number in left_out.items() if number)


def encode_examples(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]) -> list[Example]:
    """Demonstrations as token ids: the prompt as a rollout reads it, the response behind it, the end token.

    Prompt and solution are tokenised as one text. Where a token would reach over the border between them, so that
    the prompt would not be the one that a rollout reads, the two are tokenised apart.
    """
    import numpy as np

    from stages.engines.batches import Example

    end = tokenizer.eos_token_id
    prompts = tokenizer([prompt for prompt, _ in pairs])["input_ids"]
    wholes = tokenizer([prompt + solution for prompt, solution in pairs])["input_ids"]
    examples = []
    for prompt, whole, (_, solution) in zip(prompts, wholes, pairs, strict=True):
        if not prompt:
            raise UserError("an empty prompt cannot be learned from; give every question at least one token")
        if whole[: len(prompt)] != prompt:
            whole = prompt + tokenizer(solution, add_special_tokens=False)["input_ids"]
        tokens = np.asarray(whole if whole[-1] == end else [*whole, end], np.int32)
        kept = np.arange(len(prompt), tokens.size)
        examples.append(Example(tokens, kept, advantages=np.ones(kept.size), response_tokens=kept.size))
    return examples


def _epoch(examples: Sequence[Example], batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The epoch's batches: a shuffle, sorted by length within windows, cut, and the batches shuffled again."""
    import numpy as np

    from stages.maths.randomness import random_key, uniforms

    def shuffled(count: int, what: str) -> np.ndarray:
        return np.argsort(uniforms(random_key(seed, "sft", what, epoch), np.arange(count)), kind="stable")

    order = shuffled(len(examples), "examples")
    lengths = np.array([example.tokens.size for example in examples])[order]
    window = np.arange(order.size) // (_WINDOW * batch_size)
    order = order[np.lexsort((lengths, window))]
    batches = [order[start : start + batch_size] for start in range(0, order.size, batch_size)]
    return [batches[i] for i in shuffled(len(batches), "batches")]
