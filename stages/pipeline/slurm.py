"""`spo slurm`: write the iterations of a recipe as jobs of a SLURM cluster → RUN/_slurm/.

It writes one script per stage and iteration, which calls the ordinary command with the options of `spo run`, so
that both write the same rows. `submit.sh` submits the jobs; each one waits for the jobs whose output it reads.
`requeue.sh` defines what a task does when its time runs out. The recipe defines the resources of the jobs:

    [slurm]              for all stages          [slurm.rollout]     for one
    partition = "gpu"                            gpus = 1
    time = "4:00:00"                             num_shards = 16
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.configs.resources import ArrayResources
from stages.configs.run import SLURM_TABLES
from stages.configs.slurm import Config
from stages.core.errors import UserError
from stages.core.progress import Progress, Silent
from stages.core.store import StorePath
from stages.pipeline import planning
from stages.pipeline.recipe import Recipe
from stages.shards.names import find_split
from stages.slurm import queue, scripts
from stages.slurm.jobs import Job, Work
from stages.slurm.records import FOLDER, PLAN, plan_text, read_submitted, write_files
from stages.slurm.scripts import Submission
from stages.slurm.states import StageProgress, stage_progress

_MANY_JOBS = 500
"""Number of submitted jobs above which the limits of clusters are mentioned."""
_SAMPLING = ("rollout", "eval")
"""Stages that divide questions into parts; the other stages have as many parts as their input."""


@dataclass(frozen=True)
class Outcome:
    """The scripts and submitted jobs.

    Attributes:
      folder: directory of the scripts.
      files: name → text, submit.sh last.
      submissions: jobs that submit.sh submits.
      written: whether the files were written; not with --dry-run.
      numbers: name of a job → its SLURM job number, for the jobs that this call submitted.
    """

    folder: Path
    files: dict[str, str]
    submissions: tuple[Submission, ...]
    written: bool
    numbers: dict[str, str]


def run(config: Config, progress: Progress = Silent()) -> Outcome:
    """Write the scripts, and submit them with --submit.

    Raises:
      UserError: an invalid recipe, an array larger than the cluster allows, jobs of this run that are still in the
        queue, or a job that SLURM rejects.
    """
    recipe, plan = planning.open_recipe(config), planning.make_plan(config)
    if isinstance(plan.out, StorePath):
        raise UserError(
            f"scripts and logs are written to the directory of the run, which must be local; got {plan.out}"
        )
    planning.open_tasks(plan)
    if plan.keep:
        progress.note(
            f"jobs do not prune checkpoints: run `spo prune {config.recipe}` by hand, or as setup of [slurm.train]"
        )
    jobs = plan_jobs(plan, recipe)
    selected = [job for job in jobs if config.includes(job.work.iteration)]
    if jobs and not selected:
        count = len(plan.iterations)
        raise UserError(
            f"--only-iterations must select some of this run's {count} iterations, counted from 0; "
            f"got {config.only_iterations}"
        )
    _check_arrays(jobs, queue.largest_array())
    submitted = read_submitted(plan.out)
    queued = queue.query_jobs(list(dict.fromkeys(job.number for job in submitted)))
    if queued.problem:
        progress.note(queued.problem)
    stages = {job.work.output: stage_progress(plan.out, job.work, submitted, queued) for job in jobs}
    submissions, cancel = _choose_jobs(config, jobs, stages)
    _note_splits(submissions, progress)
    if len(submissions) > _MANY_JOBS:
        progress.note(
            f"{len(submissions):,} jobs: clusters limit the jobs of all users (MaxJobCount in `scontrol show config`) "
            "and of one (MaxSubmitJobs in `sacctmgr show association`); submit some at a time: --only-iterations 0-99"
        )
    here = Path.cwd()
    files = {scripts.SHARED: scripts.REQUEUE, PLAN: plan_text([job.work for job in jobs])}
    files |= {f"{job.work.name}.sbatch": scripts.job_script(job, plan.out, config.recipe, here) for job in selected}
    files[scripts.SUBMIT] = scripts.submit_script(submissions, cancel, plan.out, config.recipe)
    folder = plan.out / FOLDER
    if not config.dry_run:
        write_files(plan.out, files)
    numbers = _submit(folder / scripts.SUBMIT) if config.submit and submissions else {}
    return Outcome(folder, files, tuple(submissions), not config.dry_run, numbers)


def plan_jobs(plan: planning.Plan, recipe: Recipe) -> list[Job]:
    """Return all jobs of a run, in an order in which each follows the jobs whose output it reads.

    An output that is on disk already, whole or begun, keeps the number of parts that it has there, whatever num_shards
    says: `spo run` and jobs continue each other's work.

    Raises:
      UserError: an invalid `[slurm]` table.
    """
    recipe.config("slurm", SLURM_TABLES["slurm"])  # a mistake there must not be reported for the first stage
    resources = {name.partition(".")[2]: recipe.config(name, cls) for name, cls in SLURM_TABLES.items() if "." in name}
    shards = _count_shards(resources, recipe, plan)
    jobs, made = list[Job](), dict[str, str]()  # path of an output → name of the output in the run
    sampled = 1  # number of parts of the last trajectories
    for iteration, stage, config in _steps(plan):
        requested = resources[stage]
        work = Work(iteration, stage)
        if isinstance(requested, ArrayResources):
            if stage in _SAMPLING:
                parts = num_shards = find_split(config.out) or shards[stage]
                sampled = parts if stage == "rollout" else sampled
            else:
                parts, num_shards = sampled, min(shards[stage], sampled)
            work = dataclasses.replace(
                work, parts=parts, num_shards=num_shards, shards_per_task=requested.shards_per_task
            )
        if work.is_array:
            shard_options = {"shard": None, "num_shards": work.num_shards, "shards_per_task": work.shards_per_task}
            config = dataclasses.replace(config, **shard_options)
        after = dict.fromkeys(made[path] for path in _input_paths(config) if path in made)
        jobs.append(Job(work, config, requested, tuple(after)))
        made[str(config.out)] = work.output
    return jobs


def _note_splits(submissions: Sequence[Submission], progress: Progress) -> None:
    """Report the outputs that keep the number of parts that they have on disk."""
    for job in (submission.job for submission in submissions):
        if job.work.stage in _SAMPLING and isinstance(job.resources, ArrayResources):
            requested = job.resources.num_shards
            if job.work.parts != requested:
                progress.note(
                    f"{job.work.output} is divided into {job.work.parts} on disk, not into {requested} as num_shards "
                    "says: its jobs continue there; delete it to start over"
                )


def _steps(plan: planning.Plan) -> Iterator[tuple[str, str, Any]]:
    """Yield (iteration, stage, its configuration) in order."""
    if plan.start:
        yield "start", "sft", plan.start
    if -1 in plan.evaluations:
        yield "start", "eval", plan.evaluations[-1]
    for number, one in enumerate(plan.iterations):
        name = f"{number:03d}"
        yield name, "rollout", one.rollout
        yield name, "segment", one.segment
        yield name, "estimate", one.estimate
        yield name, "train", one.train
        if number in plan.evaluations:
            yield name, "eval", plan.evaluations[number]


def _input_paths(config: Any) -> Iterator[str]:
    """Yield the paths that a stage reads: artefacts and models."""
    for name in ("trajectories", "cutpoints", "advantages", "model", "reference_model"):
        value = getattr(config, name, None)
        yield from map(str, value) if isinstance(value, tuple) else [str(value)]


def _count_shards(resources: Mapping[str, Any], recipe: Recipe, plan: planning.Plan) -> dict[str, int]:
    """Return the number of shards of every stage that is an array.

    Raises:
      UserError: more shards than questions, or than parts of the input.
    """
    shards = {stage: one.num_shards for stage, one in resources.items() if hasattr(one, "num_shards")}
    questions = plan.iterations[0].rollout.num_questions if plan.iterations else None
    if questions is not None and shards["rollout"] > questions:
        raise UserError(
            f"{recipe.source}: num_shards = {shards['rollout']} in [slurm.rollout] or [slurm] is more than the "
            f"{questions} questions of an iteration"
        )
    for stage in ("segment", "estimate"):
        if "num_shards" in recipe.tables.get(f"slurm.{stage}", {}) and shards[stage] > shards["rollout"]:
            raise UserError(
                f"{recipe.source}: num_shards = {shards[stage]} in [slurm.{stage}], but `spo {stage}` writes one "
                f"part per part of its input, and [slurm.rollout] makes {shards['rollout']}"
            )
        shards[stage] = min(shards[stage], shards["rollout"])
    return shards


def _check_arrays(jobs: list[Job], largest: int | None) -> None:
    """Check that no array exceeds the cluster's limit; None is an unknown limit."""
    for job in jobs:
        if largest is not None and job.work.tasks > largest:
            enough = -(-job.work.num_shards // largest)
            raise UserError(
                f"the array of {job.work.name} has {job.work.tasks:,} tasks, but this cluster takes {largest:,} "
                f"(MaxArraySize): set shards_per_task = {enough} in [slurm.{job.work.stage}], or fewer shards"
            )


def _choose_jobs(
    config: Config, jobs: list[Job], stages: Mapping[str, StageProgress]
) -> tuple[list[Submission], list[tuple[str, str]]]:
    """Return the jobs to submit, and the queued jobs to cancel because they wait for tasks that failed.

    Raises:
      UserError: jobs of the run are in the queue, or an input is neither present nor being made.
    """
    submissions, cancel = dict[str, Submission](), dict[str, str]()
    for job in jobs:
        if not config.includes(job.work.iteration):
            continue
        stage = stages[job.work.output]
        active = [part.task for part in stage.parts if part.task and part.state in ("running", "queued")]
        if active and not config.only_missing:
            raise UserError(
                f"{active[0].description}; it is {job.work.name} of this run. Wait for it, cancel it (scancel), or "
                "pass --only-missing to keep the jobs in the queue"
            )
        after = tuple(output for output in job.after if output in submissions)
        if active and after and all(task.phase == "queued" for task in active):
            cancel |= {
                task.job: job.work.name for task in active
            }  # what they wait for has failed, so SLURM would never start them
            states = ("failed", "missing", "queued")
        else:
            states = ("failed", "missing")
        tasks = stage.tasks_in(*states) if config.only_missing else tuple(range(job.work.tasks))
        if not tasks:
            continue
        submissions[job.work.output] = Submission(
            job,
            tasks=tasks if len(tasks) < job.work.tasks else None,
            after=after,
            running=_queued_inputs(job, stages, submissions, cancel),
        )
    return list(submissions.values()), list(cancel.items())[::-1]


def _queued_inputs(
    job: Job, stages: Mapping[str, StageProgress], submissions: Mapping[str, Submission], canceled: Collection[str]
) -> tuple[str, ...]:
    """Return the jobs and tasks in the queue that a job must wait for.

    Raises:
      UserError: an input is neither present, nor in the queue, nor being submitted.
    """
    awaited = dict[str, None]()
    for output in job.after:
        for part in stages[output].parts:
            if part.task and part.state in ("running", "queued"):
                awaited |= {} if part.task.job in canceled else {part.task.name: None}
            elif part.state != "done" and output not in submissions:
                raise UserError(
                    f"{job.work.name} reads {output}, which is {part.state} (part {part.index}) and not among these "
                    "jobs: also include its iteration, with --only-missing"
                )
    return tuple(awaited)


def _submit(script: Path) -> dict[str, str]:
    """Run submit.sh; return name → number of the submitted jobs.

    Raises:
      UserError: SLURM is not installed, or rejects a job.
    """
    process = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=False)
    matches = [re.fullmatch(r"(\S+): job (\d+)", line) for line in process.stderr.splitlines()]
    numbers = {match[1]: match[2] for match in matches if match}
    if process.returncode:
        problem = process.stderr.strip().rpartition("\n")[2]
        raise UserError(
            f"{script} could not submit all jobs ({problem}); {len(numbers)} are in the queue. Fix the problem and "
            "rerun this command with --only-missing"
        )
    return numbers
