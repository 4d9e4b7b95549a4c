"""`spo run`: whole iterations of the stages in one process, from one recipe. The only place that knows their order.

    OUT/start/checkpoint            the warm start ([sft]), unless [run] names a model
    OUT/start/eval                  its accuracy
    OUT/000/trajectories → cutpoints → advantages → checkpoint, and eval where it is due
    OUT/001/…

Every stage is the one of the command line and writes the same artefact, so a run that was killed goes on where it was,
and single stages can be run again by hand.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stages import estimate, evaluate, rollout, segment, sft, train
from stages.configs.train import resolve_training_engine
from stages.core.errors import FingerprintMismatch
from stages.core.launcher import read_launch, require_single_process
from stages.core.paths import as_path
from stages.core.progress import Progress, Silent, Summary
from stages.pipeline.planning import Config, Iteration, Plan, make_plan, open_tasks
from stages.pipeline.retention import prune_run
from stages.sampling.pool import SamplerPool
from stages.tracking.metrics_log import MetricsLog, open_run_log


@dataclass(frozen=True)
class Done:
    """How the stages of one iteration ended (number −1: the start).

    Attributes:
      stages: verb → its summary, in order.
      evaluation: where one was due.
    """

    number: int
    stages: dict[str, Summary]
    evaluation: Summary | None = None

    @property
    def tokens_sampled(self) -> int:
        """By this call, evaluation left out."""
        return sum(summary.tokens_sampled for summary in self.stages.values())

    @property
    def seconds(self) -> float:
        """Wall time of this call, evaluation left out."""
        return sum(summary.seconds for summary in self.stages.values())


def run(config: Config, progress: Progress = Silent()) -> Summary:
    """Runs the recipe, or the rest of it.

    Raises:
      UserError: a recipe that is not as it should be: told before any work.
      SpoError: as the stages.
    """
    started = time.monotonic()
    require_single_process("spo run")
    plan = make_plan(config)
    for iteration in plan.iterations:
        resolve_training_engine(iteration.train, ranks=1)
    try:
        done = list(carry_out(plan, progress))
    except FingerprintMismatch as error:
        raise FingerprintMismatch(f"{error} (`spo run`: --run.overwrite)") from error
    return _summary(plan, done, time.monotonic() - started)


def carry_out(plan: Plan, progress: Progress = Silent()) -> Iterator[Done]:
    """Does a plan, or the rest of it: first the start (number −1), then iteration after iteration.

    Raises:
      UserError: a slip in the task, told before any work; else as the stages.
    """

    open_tasks(plan)
    with (
        SamplerPool(keep_while_training=True) as pool,
        open_run_log(plan.out, plan.report_to, plan.settings, progress) as report,
    ):
        warm_start = {"sft": sft.run(plan.start, progress, report)} if plan.start else {}
        yield _evaluated(plan, Done(-1, warm_start), progress, report, pool)
        for number, iteration in enumerate(plan.iterations):
            done = _evaluated(plan, _iterated(number, iteration, progress, report, pool), progress, report, pool)
            prune(plan, number, progress)
            yield done


def _iterated(
    number: int, iteration: Iteration, progress: Progress, report: MetricsLog | None, pool: SamplerPool
) -> Done:
    """One iteration, up to its checkpoint."""

    stages = {
        "rollout": rollout.run(iteration.rollout, progress, pool),
        "segment": segment.run(iteration.segment, progress),
        "estimate": estimate.run(iteration.estimate, progress, pool),
    }
    if report:
        for summary in stages.values():
            figures = ({} if summary.reward is None else {"reward": summary.reward}) | summary.figures
            report.log_figures(summary.stage, as_path(summary.out), figures)
    pool.free_memory()
    stages["train"] = train.run(iteration.train, progress, report)
    if report:
        report.steps += int(stages["train"].figures["steps"])
    done = Done(number, stages)
    progress.note(
        f"{_name(number)}: reward {stages['rollout'].reward or 0:.3f}, "
        f"{done.tokens_sampled:,} tokens sampled, {done.seconds:.1f} s"
    )
    return done


def prune(plan: Plan, number: int, progress: Progress) -> list[Path]:
    """Deletes of the checkpoints up to this iteration's what is not to be kept; returns those that lost anything."""

    if plan.keep is None or read_launch().rank:
        return []
    pruned = prune_run([one.train.out for one in plan.iterations[: number + 1]], plan.keep)
    for directory in pruned:
        progress.note(f"{directory} was pruned ([run] keep_checkpoints)")
    return pruned


def _evaluated(plan: Plan, done: Done, progress: Progress, report: MetricsLog | None, pool: SamplerPool) -> Done:
    """The iteration with its evaluation, where one is due."""
    if done.number not in plan.evaluations:
        return done
    evaluation = evaluate.run(plan.evaluations[done.number], progress, report, pool)
    figures = ", ".join(f"{name} {value:.3f}" for name, value in evaluation.figures.items())
    progress.note(f"{_name(done.number)}: {figures}")
    return dataclasses.replace(done, evaluation=evaluation)


def _name(iteration: int) -> str:
    return "start" if iteration < 0 else f"iteration {iteration:03d}"


def _summary(plan: Plan, done: list[Done], seconds: float) -> Summary:
    evaluations = {one.number: one.evaluation for one in done if one.evaluation}
    numbers = list(evaluations)
    figures = {
        f"{_name(number)} {name}": value
        for number in dict.fromkeys(numbers[:1] + numbers[-1:])
        for name, value in evaluations[number].figures.items()
    }
    everything = [summary for one in done for summary in (*one.stages.values(), one.evaluation) if summary]
    return Summary(
        stage="run",
        out=str(plan.out),
        rows=sum(summary.rows for summary in everything if summary.stage == "rollout"),
        seconds=seconds,
        up_to_date=all(summary.up_to_date for summary in everything),
        tokens_sampled=sum(summary.tokens_sampled for summary in everything),
        tokens_prefilled=sum(summary.tokens_prefilled for summary in everything),
        figures={"iterations": len(plan.iterations)} | figures,
    )
