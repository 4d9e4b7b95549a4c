"""`spo train`: update the policy with the advantages of its segments, and write a model directory.

The loss is PPO-clip on the kept tokens (the probability mask), with advantages whitened over each optimizer batch and a
KL divergence to a reference (arXiv 2505.23564, section 4.3), or the distillation of the advantages (its appendix B).
The advantages may be of several iterations; each segment is used once. The output is an ordinary Hugging Face directory
that `spo rollout --model` accepts. It also holds the optimizer state, which the next call continues, `metrics.jsonl`
and `spo.json`.

A killed call leaves `.NAME.partial/` beside the output; the same command resumes there and ends with the same weights.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from stages.cluster.environment import WORKER_LOGS, open_session
from stages.configs.execution import Cluster
from stages.configs.train import MAX_PER_QUESTION, Config
from stages.core.config import results_config
from stages.core.errors import UserError
from stages.core.launcher import read_launch, require_single_process
from stages.core.paths import log_directory
from stages.core.progress import Progress, Silent, Summary
from stages.models import devices, loading, saving
from stages.optimization.batches import Example, Layout, padded, padded_fixed_batches, padded_pairs
from stages.optimization.objective import Objective
from stages.optimization.optimizer import AdamWConfig
from stages.optimization.packing import packed
from stages.optimization.ranks import Ranks
from stages.optimization.step import Engine, KeptTokens, update
from stages.shards.lineage import Lineage, describe, one_deeper, read_lineage
from stages.shards.schemas import TOKEN_METRICS
from stages.tracking.metrics_log import MetricsLog, open_stage_log
from stages.training import mismatch, token_masks
from stages.training.critic import CriticStart, CriticTrainer, find_critic
from stages.training.execution import ExecutionPlan, plan_execution, plan_remote_execution
from stages.training.merging import write_merged_model
from stages.training.model_card import write_card
from stages.training.models import Models
from stages.training.pool import ExamplePool, fill_pool
from stages.training.resumable import ResumableRun, discard_partial, find_finished, open_resumable_run, write_records
from stages.training.scores import FixedLogprobs
from stages.training.starting_point import StartingPoint, find_starting_point
from stages.training.steps import LearningRates, count_steps, plan_batches, summarize, take_steps
from stages.training.token_metrics import TokenRecord
from stages.training.workers import Receiver, SentMetrics, SentProgress

if TYPE_CHECKING:
    from stages.cluster.session import Session


@dataclass(frozen=True)
class _Work:
    """What a call has to do; rank 0 determines it for all ranks.

    Attributes:
      config: the options with their defaults resolved.
      start: the inputs.
      critic: the critic to train; None if none is trained.
      lineage: lineage of the requested output, without counts and summary.
      tokens: lineage of the token metrics inside it; None if none are requested.
      finished: lineage of the existing output if it is up to date; None if the output must be made.
      began: when the call began (`time.monotonic`).
    """

    config: Config
    start: StartingPoint
    critic: CriticStart | None
    lineage: Lineage
    tokens: Lineage | None
    finished: Lineage | None
    began: float


Make = Callable[["_Work", ExecutionPlan, Progress, MetricsLog | None], Lineage]
"""Makes the output of a call; returns its lineage."""


def run(
    config: Config, progress: Progress = Silent(), metrics_log: MetricsLog | None = None, session: Session | None = None
) -> Summary:
    """Train the policy on the advantages of one or several iterations.

    Args:
      metrics_log: log of the run that this call is part of; None: a log of this call, if one is requested.
      session: the Ray of the run that this call is part of; None: the call starts its own, if one is requested.

    Raises:
      UserError: the options are wrong, the inputs fit neither together nor the model, or the output path is taken.
      IncompleteInput: parts of an input are missing or corrupt.
      FingerprintMismatch: the output exists and was made with another configuration.
    """
    cluster = session.cluster if session else config.cluster()
    if cluster and (session is None or cluster.trains_in_workers or (not cluster.share_gpus and session.gpus)):
        return _run_in_workers(config, cluster, progress, metrics_log, session)
    return _run_here(config, progress, metrics_log)


def _run_here(config: Config, progress: Progress, metrics_log: MetricsLog | None) -> Summary:
    """Train in this process, which may be a rank."""
    plan = plan_execution(config, config.device, config.dtype, read_launch())
    if plan.ranks.rank:
        progress = Silent()  # rank 0 alone reports
    with (
        plan.ranks.propagate_errors(),
        open_stage_log(config.out, config.report_to, results_config(config), progress, metrics_log) as opened,
    ):
        return _run(config, plan, progress, opened, _make_output)


def _run_in_workers(
    config: Config, cluster: Cluster, progress: Progress, metrics_log: MetricsLog | None, session: Session | None
) -> Summary:
    """Train on ranks that Ray starts, unless the output is up to date."""
    require_single_process("spo train --executor ray")
    with ExitStack() as stack:
        opened = stack.enter_context(
            open_stage_log(config.out, config.report_to, results_config(config), progress, metrics_log)
        )
        logs = log_directory(config.out) / WORKER_LOGS
        alone = 1 if session or cluster.gpus_per_trainer == 0 else None
        session = session or stack.enter_context(open_session(cluster, logs, progress))
        count = cluster.trainers or alone or max(1, session.gpus)
        plan = plan_remote_execution(config, config.dtype, count)
        own = dataclasses.replace(config, executor="local", num_workers=None, address=None, report_to=())

        def make(work: _Work, plan: ExecutionPlan, progress: Progress, metrics_log: MetricsLog | None) -> Lineage:
            from stages.cluster.ranks import rank_group  # imports Ray

            rank_group(session, "trainer", count).call(run_rank, own, on_report=Receiver(progress, metrics_log))
            lineage = read_lineage(config.out)
            assert lineage is not None
            return lineage

        return _run(config, plan, progress, opened, make)


def run_rank(workspace: Any, report: Any, config: Config) -> None:
    """Train as one rank in a worker; rank 0 sends progress and metrics by `report`."""
    _run_here(config, SentProgress(report), cast("MetricsLog", SentMetrics(report)))


def _run(
    config: Config, plan: ExecutionPlan, progress: Progress, metrics_log: MetricsLog | None, make: Make
) -> Summary:
    """Make the output unless it is up to date, and return the summary."""
    began = time.monotonic()
    work = plan.ranks.broadcast_from_main(lambda: _prepare(config, plan, progress, metrics_log))
    lineage = work.finished or make(work, plan, progress, metrics_log)
    plan.ranks.broadcast_from_main(lambda: _clean_up(config, progress))
    return Summary(
        stage="train",
        out=str(config.out),
        rows=lineage.counts["trajectories"],
        seconds=time.monotonic() - began,
        up_to_date=work.finished is not None,
        reward=lineage.summary.get("reward"),
        figures={name: value for name, value in lineage.summary.items() if name != "reward"},
        notes=(*work.start.notes, *_mismatch_notes(work.config, lineage.summary)),
    )


def _prepare(config: Config, plan: ExecutionPlan, progress: Progress, metrics_log: MetricsLog | None) -> _Work:
    """Find the inputs, describe the output, and check whether it is up to date."""
    began = time.monotonic()
    resumes_optimizer = config.optimizer_state == "resume"
    start = find_starting_point(
        config.out,
        config.advantages,
        config.trajectories,
        model=config.model,
        reference_model=config.reference_model if config.beta else None,
        temperature=config.temperature,
        continue_optimizer=resumes_optimizer,
        replay_window=config.replay,
        recorded=config.old_logprobs == "recorded",
        corrected=_may_correct(config) and config.mismatch_correction != "none",
        with_rollouts=config.train_rollouts != "none",
        adapter=config.adapter(),
    )
    critic = None
    if config.critic_learning_rate:
        critic = find_critic(start.iterations, config.critic, config.out, continue_optimizer=resumes_optimizer)
    resolved = _resolve(config, start)
    inputs = (*start.inputs, *(critic.sources if critic else ()))
    described: dict[str, Any] = {
        "packages": ("torch", "transformers", *["peft"] * bool(start.adapter), *["deepspeed"] * bool(plan.zero)),
        "derived": _derived_values(resolved, start, plan),
    }
    lineage = describe("train", None, resolved, inputs, start.model, **described)
    tokens = None
    if config.token_metrics:
        deeper = tuple(map(one_deeper, inputs))
        tokens = describe(TOKEN_METRICS.stage, TOKEN_METRICS, resolved, deeper, one_deeper(start.model), **described)
    finished = find_finished(
        config.out, lineage, overwrite=config.overwrite, progress=progress, metrics_log=metrics_log
    )
    return _Work(resolved, start, critic, lineage, tokens, finished, began)


def _resolve(config: Config, start: StartingPoint) -> Config:
    """Return the options with the defaults that the inputs or other options decide."""
    _check_selection(config, start)
    resolved: dict[str, Any] = {
        "temperature": start.temperature,
        "whiten": _whitening(config),
        "mismatch_correction": _mismatch_correction(config, start),
        "max_per_question": (config.max_per_question or MAX_PER_QUESTION) if config.replay else None,
    }
    return dataclasses.replace(config, **resolved | (start.adapter.options() if start.adapter else {}))


def _check_selection(config: Config, start: StartingPoint) -> None:
    """Check that responses which an estimator has selected are trained on with the loss that is made for them.

    Raises:
      UserError: all advantages are 1, so that whitening would set them to 0, or they mark pairs; or the loss needs
        pairs and there are none.
    """
    selected = {"restem": ("selected, all with the advantage 1", "nll"), "pairs": ("paired", "dpo-positive")}
    for iteration in start.iterations:
        lineage = iteration.advantages.lineage
        estimator = lineage.config.get("estimator") if lineage else None
        done, loss = selected.get(str(estimator), ("", config.loss))
        if config.loss != loss:
            raise UserError(
                f"{iteration.advantages.path} holds responses that --estimator {estimator} {done}: pass --loss {loss} "
                f"in place of --loss {config.loss}"
            )
        if config.loss == "dpo-positive" and estimator not in ("pairs", None):
            raise UserError(
                f"--loss dpo-positive needs pairs of a right and a wrong response, but {iteration.advantages.path} is "
                f"of --estimator {estimator}: use `spo estimate --estimator pairs`"
            )


def _whitening(config: Config) -> Literal["batch", "micro-batch", "none"]:
    """Return the scope in which advantages are whitened: as given, else the default of the loss."""
    return config.whiten or ("none" if config.loss in ("distill", "nll", "dpo-positive") else "batch")


def _mismatch_correction(config: Config, start: StartingPoint) -> Literal["tis", "mis"] | None:
    """Return the correction that is applied: as given, else tis if the sampler had another engine, dtype or policy."""
    if config.mismatch_correction is not None:
        return None if config.mismatch_correction == "none" else config.mismatch_correction
    if not _may_correct(config):
        return None
    return "tis" if start.staleness or mismatch.samplers_differ(start.iterations, config.dtype) else None


def _may_correct(config: Config) -> bool:
    """Whether the loss can be weighted for a mismatch between sampler and trainer."""
    return config.loss not in ("distill", "nll", "dpo-positive") and config.old_logprobs != "recorded"


def _mismatch_notes(config: Config, figures: Mapping[str, float]) -> tuple[str, ...]:
    """Return what the user should know about the difference between sampler and trainer; `config` is resolved."""
    correction = None if config.mismatch_correction == "none" else config.mismatch_correction
    return (*mismatch.describe_staleness(figures, correction), *mismatch.warn(figures))


def _derived_values(config: Config, start: StartingPoint, plan: ExecutionPlan) -> dict[str, Any]:
    """Return what can change the result and is not an option, for the lineage; `config` is resolved."""
    return {
        # Batch size and accumulation are not part of the lineage: only their product changes more than rounding. If
        # a loss depends on what shares a forward pass, the size of a pass does too.
        "trajectories_per_step": config.batch_size,
        "trajectories_per_pass": config.per_device_batch_size if config.depends_on_passes else None,
        "steps_before": start.steps_before,
        "ages": [iteration.age for iteration in start.iterations],
        "deepspeed": plan.zero.numerical_settings() if plan.zero else None,
    }


def _make_output(work: _Work, plan: ExecutionPlan, progress: Progress, metrics_log: MetricsLog | None) -> Lineage:
    """Train, starting at the last checkpoint if there is one, and return the lineage of the written policy."""
    config = work.config
    work.start.check_not_pruned()
    if work.critic:
        work.critic.check_not_pruned()
    for note in (str(plan), *work.start.notes):
        progress.note(note)
    with open_resumable_run(
        config.out,
        work.lineage,
        overwrite=config.overwrite,
        progress=progress,
        metrics_log=metrics_log,
        ranks=plan.ranks,
        began=work.began,
    ) as resumable:
        return _train(work, plan, resumable, progress)


def _clean_up(config: Config, progress: Progress) -> None:
    """Remove the unfinished run of a published output, and write the merged model if it is requested."""
    discard_partial(config.out)
    if config.merge:
        write_merged_model(config.out, progress)


def _train(work: _Work, plan: ExecutionPlan, resumable: ResumableRun, progress: Progress) -> Lineage:
    """Score the examples, take all steps after the last checkpoint, and publish the policy; return its lineage."""
    config, start, checkpoint = work.config, work.start, resumable.checkpoint
    if busy := devices.use_threads(config.threads):
        progress.note(busy)
    tokenizer = loading.load_tokenizer(start.policy)
    pool = fill_pool(config, start.iterations, recorded=config.old_logprobs == "recorded")
    if not pool.examples:
        progress.note("there is no segment to train on: the policy does not change")
    batches = plan_batches(pool.ids, config.seed, config.epochs, config.batch_size, pool.groups)
    resumable.announce(len(batches), devices.count_gpus(plan.device, plan.ranks.size))
    layout, adam = _choose_layout(config, pool), _adam(config)
    precision = {"dtype": config.dtype, "gradient_checkpointing": config.gradient_checkpointing}
    check = partial(pool.check_fits, packed=layout is packed)
    options = precision | {"head_chunk": config.head_chunk, "seed": config.seed}
    models = Models(start, checkpoint, plan, adam, check, **options)
    pool = _thinned(work, pool, models, layout, plan.ranks, resumable, progress)
    examples = _with_fixed_logprobs(work, pool, batches, models, layout, plan.ranks, resumable, progress)
    engine = models.open(checkpoint or start.policy)
    saving.check_saving(engine.model, tokenizer)
    critic_trainer = None
    if work.critic:
        critic_trainer = CriticTrainer.open(
            work.critic, start.iterations[-1], checkpoint, adam, config, device=config.device, **precision
        )
    objective = _objective(config, start.temperature)
    record = None
    if work.tokens and plan.ranks.rank == 0:
        record = TokenRecord.beside(resumable.directory, work.tokens, pool)
    step = _Step(
        config, engine, examples, pool.ids, objective, layout, plan.ranks, critic_trainer, record, start.staleness
    )
    writer = critic_trainer.combined_with(engine) if critic_trainer else engine
    rates = LearningRates.from_options(config, start.steps_before)
    metrics = take_steps(step, rates, batches, writer, tokenizer, resumable, config.save_steps, progress)
    counts = {"trajectories": len(examples), **pool.counts, **count_steps(metrics, start.steps_before)}
    lineage = dataclasses.replace(work.lineage, counts=counts, summary=summarize(metrics) | pool.figures)

    def write_more(directory: Path) -> None:
        write_records(directory, lineage, metrics)
        write_card(directory, lineage, start.policy)
        if record:
            record.publish(directory, len(metrics))

    writer.save(config.out, tokenizer, write_more)
    models.close()
    return lineage


def _choose_layout(config: Config, pool: ExamplePool) -> Layout:
    """Return how examples share forward passes; `config` is resolved."""
    if config.loss == "dpo-positive":
        return padded_pairs
    if config.packing or (config.packing is None and pool.shares_prefixes and not config.depends_on_passes):
        return packed
    # If a loss depends on which examples share a forward pass, the number of ranks must not change that.
    return padded_fixed_batches if config.depends_on_passes else padded


def _thinned(
    work: _Work,
    pool: ExamplePool,
    models: Models,
    layout: Layout,
    ranks: Ranks,
    resumable: ResumableRun,
    progress: Progress,
) -> ExamplePool:
    """Return the examples with the tokens that --mask entropy or random keeps; entropies are computed once."""
    config, start = work.config, work.start
    if config.mask == "random":
        examples = token_masks.random_tokens(pool.ids, pool.examples, config.mask_fraction, config.seed)
    elif config.mask == "entropy":
        found = resumable.cached_arrays(
            "entropies",
            lambda: {
                "entropy": token_masks.measure_entropies(
                    models.open_to_score(start.policy),
                    pool.examples,
                    config.per_device_batch_size,
                    start.temperature,
                    layout,
                    ranks,
                    progress,
                )
            },
        )
        examples = token_masks.uncertain_tokens(pool.examples, found["entropy"], config.mask_fraction)
    else:
        return pool
    return dataclasses.replace(pool, examples=examples)


def _with_fixed_logprobs(
    work: _Work,
    pool: ExamplePool,
    batches: Sequence[Sequence[int]],
    models: Models,
    layout: Layout,
    ranks: Ranks,
    resumable: ResumableRun,
    progress: Progress,
) -> list[Example]:
    """Return the examples with the log-probabilities of the old policies and of the reference.

    They are computed once; a resumed run reads them.
    """
    config, start = work.config, work.start
    # With one epoch, the examples of the first batch are used before the policy has moved and never again.
    in_first_step = frozenset(batches[0]) if config.epochs == 1 and batches else frozenset[int]()
    reference = (start.reference or start.policy) if config.beta else None
    fixed = FixedLogprobs(pool.samplers, start.policy, reference, in_first_step)
    size, open_model = config.per_device_batch_size, models.open_to_score
    scores = resumable.cached_arrays(
        "scores",
        lambda: fixed.compute(pool.examples, open_model, size, start.temperature, layout, progress, ranks),
    )
    return fixed.attach(pool.examples, scores)


@dataclass(frozen=True)
class _Step:
    """One optimizer step of the policy, and of the critic if one is trained: a `steps.Step`.

    Attributes:
      examples, ids: all examples of the call, and the `trajectory_id` of each.
      record: writes the kept tokens; None if that is not requested, or on another rank than the first.
      staleness: iterations of training between the model that sampled the newest examples and the policy.
    """

    config: Config
    engine: Engine
    examples: Sequence[Example]
    ids: Sequence[str]
    objective: Objective
    layout: Layout
    ranks: Ranks
    critic_trainer: CriticTrainer | None
    record: TokenRecord | None
    staleness: int = 0

    def __call__(self, number: int, batch: Sequence[int], learning_rate: float) -> dict[str, float]:
        config = self.config
        examples = [self.examples[index] for index in batch]
        # The recorded log-probabilities are compared with those of the policy at the start of the call. If they also
        # serve as the old ones, that policy is not scored in advance, so only the first step, which it takes itself,
        # can compare them.
        if number > 0 and config.old_logprobs == "recorded":
            examples = [dataclasses.replace(example, sampled=None) for example in examples]
        size = config.per_device_batch_size

        def write_tokens(tokens: list[KeptTokens]) -> None:
            if self.record:
                self.record.write_step(number + 1, batch, tokens)

        metrics = update(
            self.engine,
            examples,
            self.objective,
            size,
            learning_rate,
            self.layout,
            self.ranks,
            record=write_tokens if config.token_metrics else None,
        )
        if self.staleness:
            metrics[mismatch.STALENESS] = float(self.staleness)
        if self.critic_trainer:
            names = [self.ids[index] for index in batch]
            metrics |= self.critic_trainer.step(names, learning_rate / config.learning_rate)
        return metrics


def _adam(config: Config) -> AdamWConfig:
    """Return the settings of the optimizer."""
    return AdamWConfig(
        config.adam_beta1, config.adam_beta2, config.adam_epsilon, config.weight_decay, config.max_grad_norm
    )


def _objective(config: Config, temperature: float) -> Objective:
    """Return the loss that the options describe."""
    return Objective(
        loss=config.loss,
        temperature=temperature,
        epsilon=config.epsilon,
        epsilon_high=config.epsilon_high,
        dual_clip=config.dual_clip,
        correction=None if config.mismatch_correction == "none" else config.mismatch_correction,
        correction_level=config.mismatch_level,
        correction_cap=config.mismatch_cap,
        entropy_bonus=config.entropy_bonus,
        cov_fraction=config.cov_fraction,
        kl_cov_weight=config.kl_cov_weight,
        pair_penalty=config.pair_penalty,
        importance_cap=config.importance_cap if config.old_logprobs == "recorded" else None,
        beta=config.beta,
        kl=config.kl,
        kl_normalization=config.kl_normalization,
        normalization=config.loss_normalization,
        constant=config.loss_constant,
        whiten=_whitening(config),
        max_ratio=config.max_ratio,
    )
