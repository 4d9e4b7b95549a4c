"""`spo sft`: train a model on the worked solutions of a task, and write a model directory.

    loss of a step = − (sum of log p(token) over the responses of the batch, end tokens included) / (number of them)

The model is a Hugging Face directory, or is made from scratch (`--preset`). A killed call leaves `.NAME.partial/`
beside the output; the same command resumes there and ends with bitwise the same weights.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from stages.configs.sft import Config
from stages.core.config import results_config
from stages.core.errors import UserError
from stages.core.launcher import require_single_process
from stages.core.progress import Progress, Silent, Summary
from stages.models import checkpoints, devices, loading, lora, presets, saving
from stages.models.adapters import Lora
from stages.models.presets import make_model
from stages.optimization.batches import Example, collate, micro_batches
from stages.optimization.optimizer import AdamWConfig
from stages.optimization.step import Engine, learning_rate_factor
from stages.optimization.torch import TorchEngine, open_engine
from stages.responses.prompts import with_template
from stages.shards.lineage import Lineage, describe, model_source, task_source
from stages.tasks import Task, open_task
from stages.tracking.metrics_log import MetricsLog, open_stage_log
from stages.training.demonstrations import load_examples, plan_batches
from stages.training.merging import write_merged_model
from stages.training.model_card import write_card
from stages.training.resumable import (
    Metrics,
    ResumableRun,
    discard_partial,
    find_finished,
    open_resumable_run,
    write_records,
)


def run(config: Config, progress: Progress = Silent(), metrics_log: MetricsLog | None = None) -> Summary:
    """Train the model and write its directory.

    Args:
      metrics_log: log of the run that this call is part of; None: a log of this call, if one is requested.

    Raises:
      UserError: the options are wrong, the model is unusable, no worked solution fits the context, or the output path
        is taken.
      FingerprintMismatch: the output, or unfinished work beside it, was made with another configuration.
    """
    require_single_process("spo sft")
    with open_stage_log(config.out, config.report_to, results_config(config), progress, metrics_log) as opened:
        return _run(config, progress, opened)


def _run(config: Config, progress: Progress, metrics_log: MetricsLog | None) -> Summary:
    """Make the output unless it is up to date, and return the summary."""
    started = time.monotonic()
    config = with_template(config)
    task = open_task(config.task, config.data, config.task_arg)
    base = checkpoints.resolve(config.model) if config.model else None
    adapter = lora.plan(base, config.adapter())
    lineage = _describe(config, task, base, adapter)
    if done := find_finished(
        config.out, lineage, overwrite=config.overwrite, progress=progress, metrics_log=metrics_log
    ):
        _clean_up(config, progress)
        return _summary(config, done, started, up_to_date=True)
    tokenizer, context_length, vocabulary = _load_tokenizer(base)
    count = config.num_examples
    if count is None and config.steps:
        count = min(config.steps * config.batch_size, len(task.questions(config.split)) - config.eval_examples)
    count = None if count is None else max(count, 1) + config.eval_examples
    examples, notes = load_examples(task, config, count, tokenizer, context_length, vocabulary)
    examples, held_out = _hold_out(examples, config.eval_examples)
    with open_resumable_run(
        config.out,
        lineage,
        overwrite=config.overwrite,
        progress=progress,
        metrics_log=metrics_log,
        began=started,
    ) as resumable:
        if adapter and base:
            progress.note(lora.describe(adapter, checkpoints.base_of(base)))
        if busy := devices.use_threads(config.threads):
            progress.note(busy)
        engine = _open_engine(config, base, resumable.checkpoint, adapter)
        saving.check_saving(engine.model, tokenizer)
        metrics = _train(config, engine, tokenizer, examples, held_out, resumable, progress)
        last = metrics[-1]
        figures = {name: last[name] for name in ("loss", "eval_loss") if name in last}
        counts = {"examples": len(examples), "steps": len(metrics), "tokens": int(last["num_tokens"])}
        lineage = dataclasses.replace(lineage, counts=counts, summary=figures)

        def write_more(directory: Path) -> None:
            write_records(directory, lineage, metrics)
            write_card(directory, lineage, base)

        # Without the optimizer state: its moments are of this loss, and `spo train` starts with a fresh optimizer.
        saving.save_directory(config.out, engine.model, tokenizer, write_more)
    _clean_up(config, progress)
    return _summary(config, lineage, started, notes=notes)


def _describe(config: Config, task: Task, base: Path | None, adapter: Lora | None) -> Lineage:
    """Return the lineage of the requested output, without counts and summary."""
    resolved: dict[str, Any] = {"learning_rate": config.peak_learning_rate}
    resolved |= adapter.options() if adapter else {}
    return describe(
        "sft",
        None,
        dataclasses.replace(config, **resolved),
        inputs=(task_source(config.task, config.data, task.digest, config.out),),
        model=model_source(config.model, checkpoints.digest(base), config.out) if config.model and base else None,
        packages=("torch", "transformers"),
        # Batch size and accumulation are not part of the lineage: only their product changes more than rounding.
        derived={"examples_per_step": config.batch_size},
    )


def _clean_up(config: Config, progress: Progress) -> None:
    """Remove the unfinished run of a published output, and write the merged model if it is requested."""
    discard_partial(config.out)
    if config.merge:
        write_merged_model(config.out, progress)


def _summary(
    config: Config, lineage: Lineage, started: float, *, up_to_date: bool = False, notes: tuple[str, ...] = ()
) -> Summary:
    """Return the summary of the call from the lineage of the model."""
    figures: dict[str, float] = {name: value for name, value in lineage.counts.items() if name != "examples"}
    return Summary(
        stage="sft",
        out=str(config.out),
        rows=lineage.counts["examples"],
        seconds=time.monotonic() - started,
        up_to_date=up_to_date,
        figures=figures | lineage.summary,
        notes=notes,
    )


def _load_tokenizer(base: Path | None) -> tuple[PreTrainedTokenizerBase, int, int]:
    """Return tokenizer, context length and vocabulary size of the model to start from; None is one from scratch."""
    if base:
        config = loading.load_config(base)
        return loading.load_tokenizer(base), loading.context_length(config), loading.vocabulary_size(config)
    return presets.make_byte_tokenizer(), presets.CONTEXT_LENGTH, presets.BYTES + 2


def _hold_out(examples: Sequence[Example], count: int) -> tuple[Sequence[Example], Sequence[Example]]:
    """Return the examples to train on, and the last `count` of them, which are held out.

    Raises:
      UserError: none is left to train on.
    """
    if count >= len(examples):
        raise UserError(
            f"--eval-examples {count} holds out all {len(examples)} worked solutions: expected at most "
            f"{len(examples) - 1}"
        )
    return examples[: len(examples) - count], examples[len(examples) - count :]


def _open_engine(config: Config, base: Path | None, checkpoint: Path | None, adapter: Lora | None) -> TorchEngine:
    """Open the model with its optimizer: from the checkpoint, else from the given model, else from scratch."""
    adam = AdamWConfig(
        config.adam_beta1,
        config.adam_beta2,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
    )
    if directory := checkpoint or base:
        return open_engine(
            directory,
            adam,
            device=config.device,
            dtype=config.dtype,
            gradient_checkpointing=config.gradient_checkpointing,
            continue_optimizer=checkpoint is not None,
            adapter=adapter,
            seed=config.seed,
        )
    device = devices.pick_device(config.device)
    model, _ = make_model(config.preset or "tiny", config.seed)
    model.to(device)  # pyright: ignore[reportArgumentType]
    dtype = devices.pick_dtype(config.dtype, device)
    return TorchEngine(model, adam, compute=dtype, gradient_checkpointing=config.gradient_checkpointing)


def _train(
    config: Config,
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    resumable: ResumableRun,
    progress: Progress,
) -> Metrics:
    """Take all steps after the last checkpoint, and return the metrics of all steps.

    Args:
      held_out: examples whose loss is measured from time to time, as `eval_loss`.
    """
    per_epoch = math.ceil(len(examples) / config.batch_size)
    steps = config.steps or max(1, round(config.epochs * per_epoch))
    metrics = resumable.metrics
    resumable.announce(steps, devices.count_gpus(devices.pick_device(config.device)))
    progress.start("sft", steps, "steps")
    progress.advance(len(metrics))
    batches: list[np.ndarray] = []
    for step in range(len(metrics), steps):
        epoch, position = divmod(step, per_epoch)
        if position == 0 or not batches:  # a new epoch, or the first step of a resumed run
            batches = plan_batches(examples, config.batch_size, config.seed, epoch)
        batch, began = [examples[index] for index in batches[position]], time.monotonic()
        line = _step(config, engine, batch, step, steps)
        seconds = time.monotonic() - began
        processed = sum(example.tokens.size for example in batch)
        line |= {"step_time": seconds, "tokens_per_second": processed / seconds}
        if held_out and (step + 1 == steps or (step + 1) % (config.eval_steps or per_epoch) == 0):
            line["eval_loss"] = _loss(engine, held_out, config.per_device_batch_size)
        line["num_tokens"] += metrics[-1]["num_tokens"] if metrics else 0
        metrics.append(line)
        resumable.log(line)
        shown: dict[str, Any] = {name: line[name] for name in ("loss", "eval_loss") if name in line}
        progress.advance(1, processed, **shown)
        if step + 1 < steps:
            resumable.save_if_due(engine, tokenizer, metrics, config.save_steps)
    return metrics


def _step(config: Config, engine: Engine, batch: Sequence[Example], step: int, steps: int) -> dict[str, float]:
    """Take one optimizer step, and return its metrics; `step` counts from 0."""
    tokens, total = sum(example.kept.size for example in batch), 0.0
    for group in micro_batches(batch, config.per_device_batch_size):
        loss = -engine.score(collate([batch[index] for index in group]), temperature=1.0).logprobs.sum() / tokens
        engine.backward(loss)
        total += loss.item()
    warmup = round(config.warmup_ratio * steps)
    rate = config.peak_learning_rate * learning_rate_factor(step, steps, warmup, config.lr_scheduler_type)
    try:
        norm = engine.step(rate)
    except FloatingPointError as error:
        raise UserError(f"step {step + 1}: {error} and the loss {total:.4g}; take a lower --learning-rate") from error
    return {"step": step + 1, "loss": total, "learning_rate": rate, "grad_norm": norm, "num_tokens": tokens}


def _loss(engine: Engine, examples: Sequence[Example], size: int) -> float:
    """Return the loss of examples without training on them.

    Args:
      size: examples per forward pass.
    """
    tokens = sum(example.kept.size for example in examples)
    with torch.no_grad():
        passes = (collate([examples[index] for index in group]) for group in micro_batches(examples, size))
        return -sum(engine.score(one, temperature=1.0).logprobs.sum().item() for one in passes) / tokens
