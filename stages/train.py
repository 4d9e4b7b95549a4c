"""`spo train`: move the policy by its segments' advantages → a model directory.

PPO-clip on the kept tokens (the probability mask), advantages whitened over each optimiser batch, KL to a reference as
a loss term (arXiv 2505.23564, section 4.3); or the distillation of the advantages (its appendix B). The advantages may
be of several iterations, each segment used once. The directory is an ordinary Hugging Face one that
`spo rollout --model` takes as it is; beside the weights lie the optimiser's state, which the next call continues,
`metrics.jsonl` and `spo.json`.

A killed call leaves `.NAME.partial/` beside the output; the same command resumes there and ends with the same weights.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from stages.configs.train import MAX_PER_QUESTION, Config
from stages.core.config import option, results_config
from stages.core.launcher import read_launch
from stages.core.progress import Progress, Silent, Summary
from stages.models import loading
from stages.optimization.batches import padded, padded_whole
from stages.optimization.objective import Objective
from stages.optimization.optimizer import Adam
from stages.optimization.packing import packed
from stages.optimization.step import update
from stages.shards.lineage import Lineage, describe
from stages.tracking.metrics_log import MetricsLog, open_stage_log
from stages.training import mismatch
from stages.training.critic import CriticStart, CriticTrainer, find_critic
from stages.training.execution import ExecutionPlan, plan_execution
from stages.training.merging import write_merged_model
from stages.training.models import Models
from stages.training.pool import fill_pool
from stages.training.resumable import ResumableRun, discard_partial, find_finished, open_resumable_run, write_records
from stages.training.scores import Fixed
from stages.training.starting_point import StartingPoint, find_starting_point
from stages.training.steps import Rates, count_steps, plan_batches, summarize, take_steps


@dataclass(frozen=True, kw_only=True)
class _Resolved(Config):
    """A Config with its defaults resolved: the source of the fingerprint."""

    temperature: float = option("As given or recorded.")
    whiten: Literal["batch", "micro-batch", "none"] = option("As given, or the loss's own.")
    trajectories_per_step: int = option("Batch size times accumulation; how it is split changes nothing.")
    trajectories_per_pass: int | None = option("The split, where advantages are whitened by forward pass.")
    steps_before: int = option("Steps of the schedule that earlier calls took.")
    ages: tuple[int, ...] = option("Iterations since each of the advantages; 0 is this one.")
    deepspeed: dict[str, Any] | None = option("What --deepspeed-config says that may change more than rounding.")


def run(config: Config, progress: Progress = Silent(), report: MetricsLog | None = None) -> Summary:
    """Trains the policy on the advantages of one iteration, or of several.

    Args:
      report: of the run that this is part of; left out, its own where one is asked for.

    Raises:
      UserError: wrong options, inputs that do not fit together or the model, a place that is taken.
      IncompleteInput: parts of an input are missing or torn.
      FingerprintMismatch: the output is there, made with another configuration.
    """

    sharing = plan_execution(config, config.device, config.dtype, read_launch())
    if sharing.ranks.rank:
        progress = Silent()
    with (
        sharing.ranks.agreed(),
        open_stage_log(config.out, config.report_to, results_config(config), progress, report) as opened,
    ):
        return _run(config, sharing, progress, opened)


def _run(config: Config, sharing: ExecutionPlan, progress: Progress, report: MetricsLog | None) -> Summary:

    began, first = time.monotonic(), sharing.ranks.first
    resume = config.optimizer_state == "resume"
    start = first(
        lambda: find_starting_point(
            config.out,
            config.advantages,
            config.trajectories,
            model=config.model,
            reference_model=config.reference_model if config.beta else None,
            temperature=config.temperature,
            continue_optimiser=resume,
            life=config.replay,
            recorded=config.old_logprobs == "recorded",
            adapter=config.adapter(),
        )
    )
    resolved = _resolve(config, start, sharing)
    critic = None
    if config.critic_learning_rate:
        critic = find_critic(start.sampled, config.critic, config.out, continue_optimiser=resume)
    inputs = (*start.inputs, *(critic.sources if critic else ()))
    packages = ("torch", "transformers", *["peft"] * bool(start.adapter), *["deepspeed"] * bool(sharing.zero))
    lineage = first(lambda: describe("train", None, resolved, inputs, start.model, packages))
    done = first(
        lambda: find_finished(config.out, lineage, overwrite=config.overwrite, progress=progress, report=report)
    )
    if done is None:
        start.check_not_pruned()
        if critic:
            critic.check_not_pruned()
        for note in (str(sharing), *start.notes):
            progress.note(note)
        with open_resumable_run(
            config.out,
            lineage,
            overwrite=config.overwrite,
            progress=progress,
            report=report,
            ranks=sharing.ranks,
        ) as unfinished:
            lineage = _train(resolved, sharing, start, critic, lineage, unfinished, progress)
    first(lambda: discard_partial(config.out))
    if config.merge:
        first(lambda: write_merged_model(config.out, progress))
    made = done or lineage
    return Summary(
        stage="train",
        out=str(config.out),
        rows=made.counts["trajectories"],
        seconds=time.monotonic() - began,
        up_to_date=done is not None,
        reward=made.summary.get("reward"),
        figures={name: value for name, value in made.summary.items() if name != "reward"},
        notes=(*start.notes, *mismatch.warn(made.summary)),
    )


def _resolve(config: Config, start: StartingPoint, sharing: ExecutionPlan) -> _Resolved:
    whiten = config.whiten or ("batch" if config.loss == "ppo" else "none")
    found = {
        "temperature": start.temperature,
        "whiten": whiten,
        "max_per_question": (config.max_per_question or MAX_PER_QUESTION) if config.replay else None,
        "trajectories_per_step": config.batch_size,
        "trajectories_per_pass": config.per_device_batch_size if whiten == "micro-batch" else None,
        "steps_before": start.steps_before,
        "ages": tuple(sampled.age for sampled in start.sampled),
        "deepspeed": sharing.zero.of_numbers() if sharing.zero else None,
    }
    given: dict[str, Any] = vars(config) | found | (start.adapter.options() if start.adapter else {})
    return _Resolved(**given)


def _train(
    config: _Resolved,
    sharing: ExecutionPlan,
    start: StartingPoint,
    critic: CriticStart | None,
    lineage: Lineage,
    unfinished: ResumableRun,
    progress: Progress,
) -> Lineage:
    """Reads, scores, takes all steps after the last checkpoint; publishes the policy and returns its lineage."""

    if config.threads:
        torch.set_num_threads(config.threads)
    tokenizer = loading.load_tokenizer(start.policy)
    recorded = config.old_logprobs == "recorded"
    pool = fill_pool(config, start.sampled, recorded=recorded)
    if not pool.examples:
        progress.note("there is no segment to learn from: the policy stays as it is")
    pack = pool.stretches and config.whiten != "micro-batch" if config.packing is None else config.packing
    layout = packed if pack else padded_whole if config.whiten == "micro-batch" else padded
    size, ranks, adam = config.per_device_batch_size, sharing.ranks, _adam(config)
    order = plan_batches(pool.ids, config.seed, config.epochs, config.batch_size, pool.groups)
    numbers = {"dtype": config.dtype, "gradient_checkpointing": config.gradient_checkpointing}
    models = Models(
        start,
        unfinished.checkpoint,
        sharing,
        adam,
        lambda engine, directory: pool.check_fits(engine, directory, packed=pack),
        **numbers,
        head_chunk=config.head_chunk,
        seed=config.seed,
    )
    untouched = frozenset(order[0]) if config.epochs == 1 and order else frozenset[int]()
    reference = (start.reference or start.policy) if config.beta else None
    fixed = Fixed(pool.samplers, start.policy, reference, untouched)
    scores = unfinished.cached_arrays(
        "scores",
        lambda: fixed.compute(pool.examples, models.open_to_score, size, config.temperature, layout, progress, ranks),
    )
    examples, objective = fixed.attach(pool.examples, scores), _objective(config)
    engine = models.open(unfinished.checkpoint or start.policy)
    judge = None
    if critic:
        sampled, checkpoint = start.sampled[-1], unfinished.checkpoint
        judge = CriticTrainer.open(critic, sampled, checkpoint, adam, config, device=config.device, **numbers)

    def step(batch: Sequence[int], rate: float) -> dict[str, float]:
        taken = [examples[index] for index in batch]
        if recorded and batch is not order[0]:  # the policy has moved, and nobody has scored it as it was
            taken = [dataclasses.replace(example, sampled=None) for example in taken]
        figures = update(engine, taken, objective, size, rate, layout, ranks)
        if judge:
            figures |= judge.step([pool.ids[index] for index in batch], rate / config.learning_rate)
        return figures

    work = judge.beside(engine) if judge else engine
    rates = Rates.of(config, config.steps_before)
    metrics = take_steps(step, rates, order, work, tokenizer, unfinished, config.save_steps, progress)
    counts = {"trajectories": len(examples), **pool.counts, **count_steps(metrics, config.steps_before)}
    lineage = dataclasses.replace(lineage, counts=counts, summary=summarize(metrics) | pool.figures)
    work.save(config.out, tokenizer, lambda directory: write_records(directory, lineage, metrics))
    models.close()
    return lineage


def _adam(config: _Resolved) -> Adam:

    return Adam(config.adam_beta1, config.adam_beta2, config.adam_epsilon, config.weight_decay, config.max_grad_norm)


def _objective(config: _Resolved) -> Objective:

    return Objective(
        loss=config.loss,
        temperature=config.temperature,
        epsilon=config.epsilon,
        epsilon_high=config.epsilon_high,
        importance_cap=config.importance_cap if config.old_logprobs == "recorded" else None,
        beta=config.beta,
        kl=config.kl,
        normalization=config.loss_normalization,
        constant=config.loss_constant,
        whiten=config.whiten,
        max_ratio=config.max_ratio,
    )
