"""`spo run`: run whole iterations of the stages in one process, from one recipe.

    OUT/start/checkpoint            warm start ([sft]), unless [run] names a model
    OUT/start/eval                  accuracy of the start
    OUT/000/trajectories → cutpoints → advantages → checkpoint, and eval where one is due
    OUT/001/…

Every stage is the one of the command line and writes the same artefact. A killed run therefore resumes where it
stopped, and single stages can be rerun by hand.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages import estimate, evaluate, segment, sft, train
from stages.cluster.environment import WORKER_LOGS, open_session
from stages.configs.train import resolve_training_engine
from stages.core.errors import FingerprintMismatch
from stages.core.launcher import read_launch, require_single_process
from stages.core.paths import LOGS, AnyPath, as_path
from stages.core.progress import Progress, Silent, Summary, report_work
from stages.pipeline.ahead import RolloutsAhead
from stages.pipeline.planning import Config, Iteration, Plan, make_plan, open_tasks
from stages.pipeline.retention import prune_run
from stages.sampling.executors import remote_pool
from stages.sampling.pool import SamplerPool
from stages.tracking.metrics_log import MetricsLog, open_run_log

if TYPE_CHECKING:
    from stages.cluster.session import Session


@dataclass(frozen=True)
class IterationResult:
    """The summaries of one iteration.

    Attributes:
      number: index of the iteration; -1 is the start.
      stages: command → its summary, in order.
      evaluation: summary of the evaluation; None if none was due.
    """

    number: int
    stages: dict[str, Summary]
    evaluation: Summary | None = None

    @property
    def tokens_sampled(self) -> int:
        """Tokens that this call sampled, without evaluation."""
        return sum(summary.tokens_sampled for summary in self.stages.values())

    @property
    def seconds(self) -> float:
        """Wall time of this call in seconds, without evaluation."""
        return sum(summary.seconds for summary in self.stages.values())


def run(config: Config, progress: Progress = Silent()) -> Summary:
    """Run a recipe, or what remains of it.

    Raises:
      UserError: an invalid recipe; raised before any work.
      SpoError: as the stages.
    """
    started = time.monotonic()
    require_single_process("spo run")
    plan = make_plan(config)
    for iteration in plan.iterations:
        ranks = (plan.cluster.trainers if plan.cluster else None) or 1
        resolve_training_engine(iteration.train, ranks)  # raises before any work where training would fail
    try:
        done = list(run_plan(plan, progress))
    except FingerprintMismatch as error:
        raise FingerprintMismatch(f"{error} (`spo run`: --run.overwrite)") from error
    return _summary(plan, done, time.monotonic() - started)


def run_plan(plan: Plan, progress: Progress = Silent()) -> Iterator[IterationResult]:
    """Run a plan, or what remains of it, and yield each result: first the start (number -1), then each iteration.

    Raises:
      UserError: an invalid task, raised before any work.
      SpoError: as the stages.
    """
    open_tasks(plan)
    with ExitStack() as stack:
        session = (
            stack.enter_context(open_session(plan.cluster, plan.out / LOGS / WORKER_LOGS, progress))
            if plan.cluster
            else None
        )
        ahead = stack.enter_context(RolloutsAhead(plan, progress, session))
        pool = stack.enter_context(remote_pool(session) if session else SamplerPool(keep_while_training=True))
        metrics_log = stack.enter_context(open_run_log(plan.out, plan.report_to, plan.settings, progress))
        start = plan.start
        warm_start = {"sft": report_work(lambda own: sft.run(start, own, metrics_log), progress)} if start else {}
        yield _evaluate(plan, IterationResult(-1, warm_start), progress, metrics_log, pool)
        for number, iteration in enumerate(plan.iterations):
            done = _run_iteration(number, iteration, progress, metrics_log, pool, session, ahead)
            done = _evaluate(plan, done, progress, metrics_log, pool)
            prune_checkpoints(plan, number, progress)
            yield done


_SHARES = {"no answer": "no_answer", "truncated": "clipped"}
_NOTABLE = 0.05  # smaller shares are left out of the line of an iteration


def _run_iteration(
    number: int,
    iteration: Iteration,
    progress: Progress,
    metrics_log: MetricsLog | None,
    pool: SamplerPool,
    session: Session | None,
    ahead: RolloutsAhead,
) -> IterationResult:
    """Run the stages of one iteration, up to its checkpoint."""
    sampled = ahead.take(number, pool)
    for note in () if sampled.up_to_date else sampled.notes:
        progress.note(note)
    stages = {
        "rollout": sampled,
        "segment": report_work(lambda own: segment.run(iteration.segment, own), progress),
        "estimate": report_work(lambda own: estimate.run(iteration.estimate, own, pool), progress),
    }
    if metrics_log:
        for summary in stages.values():
            figures = ({} if summary.reward is None else {"reward": summary.reward}) | summary.figures
            metrics_log.log_figures(summary.stage, as_path(summary.out), figures)
    if not ahead.begin(number + 1, pool):
        pool.free_memory()  # training needs the memory of the sampling engine
    stages["train"] = report_work(lambda own: train.run(iteration.train, own, metrics_log, session), progress)
    ahead.finish()
    if metrics_log:
        metrics_log.steps += int(stages["train"].figures["steps"])
    done = IterationResult(number, stages)
    reward = "no reward" if sampled.reward is None else f"reward {sampled.reward:.3f}"
    shares = {name: sampled.figures.get(f"completions/{column}_ratio", 0.0) for name, column in _SHARES.items()}
    reward += "".join(f", {name} {share:.0%}" for name, share in shares.items() if share >= _NOTABLE)
    if not all(one.up_to_date for one in stages.values()):
        progress.note(f"{_name(number)}: {reward}, {done.tokens_sampled:,} tokens sampled, {done.seconds:.1f} s")
    return done


def prune_checkpoints(plan: Plan, number: int, progress: Progress) -> list[AnyPath]:
    """Prune the checkpoints of the iterations up to `number`, as [run] keep_checkpoints says.

    Returns:
      The checkpoints that lost files.
    """
    if plan.keep is None or read_launch().rank:
        return []
    pruned = prune_run([one.train.out for one in plan.iterations[: number + 1]], plan.keep)
    for directory in pruned:
        progress.note(f"pruned {directory} ([run] keep_checkpoints)")
    return pruned


def _evaluate(
    plan: Plan, done: IterationResult, progress: Progress, metrics_log: MetricsLog | None, pool: SamplerPool
) -> IterationResult:
    """Return the result with its evaluation, which runs here if one is due."""
    if done.number not in plan.evaluations:
        return done
    evaluation = report_work(lambda own: evaluate.run(plan.evaluations[done.number], own, metrics_log, pool), progress)
    figures = ", ".join(f"{name} {value:.3f}" for name, value in evaluation.figures.items())
    if not evaluation.up_to_date:
        progress.note(f"{_name(done.number)}: {figures}")
    return dataclasses.replace(done, evaluation=evaluation)


def _name(iteration: int) -> str:
    return "start" if iteration < 0 else f"iteration {iteration:03d}"


def _summary(plan: Plan, done: list[IterationResult], seconds: float) -> Summary:
    evaluations = {one.number: one.evaluation for one in done if one.evaluation}
    numbers = list(evaluations)
    figures = {
        f"{_name(number)} {name}": value
        for number in dict.fromkeys(numbers[:1] + numbers[-1:])
        for name, value in evaluations[number].figures.items()
    }
    summaries = [summary for one in done for summary in (*one.stages.values(), one.evaluation) if summary]
    return Summary(
        stage="run",
        out=str(plan.out),
        rows=sum(summary.rows for summary in summaries if summary.stage == "rollout"),
        seconds=seconds,
        up_to_date=all(summary.up_to_date for summary in summaries),
        tokens_sampled=sum(summary.tokens_sampled for summary in summaries),
        tokens_prefilled=sum(summary.tokens_prefilled for summary in summaries),
        figures={"iterations": len(plan.iterations)} | figures,
    )
