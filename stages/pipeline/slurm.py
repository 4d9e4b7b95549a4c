"""`spo slurm`: the iterations of a recipe as jobs of a SLURM cluster → RUN/_slurm/.

A script for every stage of every iteration, which calls the ordinary command with what `spo run` would tell it, so that
both make the same rows; `submit.sh`, which hands them to SLURM, each to begin once those that it reads from have ended
well; `requeue.sh`, what a task does when its time runs out. What the jobs ask for stands in the recipe:

    [slurm]              for all stages          [slurm.rollout]     for one
    partition = "gpu"                            gpus = 1
    time = "4:00:00"                             num_shards = 16
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.configs.resources import ArrayResources
from stages.configs.slurm import Config
from stages.core.errors import UserError
from stages.core.paths import is_local
from stages.core.progress import Progress, Silent
from stages.pipeline import planning
from stages.pipeline.recipe import Recipe
from stages.slurm import queue, scripts
from stages.slurm.jobs import Job, Work
from stages.slurm.records import FOLDER, PLAN, plan_text, read_submitted, write_files
from stages.slurm.scripts import Submission
from stages.slurm.states import StageProgress, check_split, stage_progress


@dataclass(frozen=True)
class Outcome:
    """What was written and submitted.

    Attributes:
      folder: of the scripts.
      files: name → text, submit.sh last.
      submissions: the jobs that submit.sh hands over.
      written: whether the files were.
      numbers: name of a job → the number that SLURM gave it, of those submitted by this call.
    """

    folder: Path
    files: dict[str, str]
    submissions: tuple[Submission, ...]
    written: bool
    numbers: dict[str, str]


def run(config: Config, progress: Progress = Silent()) -> Outcome:
    """Writes the scripts, and submits them if asked to.

    Raises:
      UserError: a recipe that is not as it should be, an array that is larger than the cluster takes, jobs of this run
        that are in the queue still, or a SLURM that refuses one.
    """

    recipe, plan = planning.open_recipe(config), planning.make_plan(config)
    if not is_local(plan.out):
        raise UserError(
            f"the scripts and logs of jobs lie in the run: expected a directory of this machine, got {plan.out}"
        )
    planning.open_tasks(plan)
    if plan.keep:
        progress.note(
            f"jobs leave all checkpoints: `spo prune {config.recipe}` deletes what is not to be kept, when you call it "
            "or as setup of [slurm.train]"
        )
    jobs = plan_jobs(plan, recipe)
    wanted = [job for job in jobs if config.includes(job.work.iteration)]
    if jobs and not wanted:
        count = len(plan.iterations)
        raise UserError(f"--only-iterations {config.only_iterations} is none of this run's {count}, counted from 0")
    _check_arrays(jobs, queue.largest_array())
    submitted = read_submitted(plan.out)
    asked = queue.query_jobs(list(dict.fromkeys(job.number for job in submitted)))
    if asked.problem:
        progress.note(asked.problem)
    stages = {job.work.output: stage_progress(plan.out, job.work, submitted, asked) for job in jobs}
    submissions, cancel = _choose(config, jobs, stages)
    for submission in submissions:
        check_split(plan.out, submission.job.work)
    here = Path.cwd()
    files = {scripts.SHARED: scripts.REQUEUE, PLAN: plan_text([job.work for job in jobs])}
    files |= {f"{job.work.name}.sbatch": scripts.job_script(job, plan.out, config.recipe, here) for job in wanted}
    files[scripts.SUBMIT] = scripts.submit_script(submissions, cancel, plan.out, config.recipe)
    folder = plan.out / FOLDER
    if not config.dry_run:
        write_files(plan.out, files)
    numbers = _submit(folder / scripts.SUBMIT) if config.submit and submissions else {}
    return Outcome(folder, files, tuple(submissions), not config.dry_run, numbers)


def plan_jobs(plan: planning.Plan, recipe: Recipe) -> list[Job]:
    """All jobs of a run, each after those it reads from.

    Raises:
      UserError: a `[slurm]` table that is not as it should be.
    """

    resources = {
        name.partition(".")[2]: recipe.config(name, cls) for name, cls in planning.SLURM_TABLES.items() if "." in name
    }
    shards = _count_shards(resources, recipe, plan)
    jobs, made = list[Job](), dict[str, str]()  # output → the place of what makes it
    for iteration, stage, config in _steps(plan):
        asked = resources[stage]
        work = Work(iteration, stage)
        if isinstance(asked, ArrayResources):
            parts = shards["rollout"] if stage in ("segment", "estimate") else shards[stage]
            work = dataclasses.replace(
                work, parts=parts, num_shards=shards[stage], shards_per_task=asked.shards_per_task
            )
        if work.is_array:
            share = {"shard": None, "num_shards": work.num_shards, "shards_per_task": work.shards_per_task}
            config = dataclasses.replace(config, **share)
        after = dict.fromkeys(made[path] for path in _read_by(config) if path in made)
        jobs.append(Job(work, config, asked, tuple(after)))
        made[str(config.out)] = work.output
    return jobs


def _steps(plan: planning.Plan) -> Iterator[tuple[str, str, Any]]:
    """(iteration, stage, its configuration) in order."""
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


def _read_by(config: Any) -> Iterator[str]:
    """What a stage reads, as paths: its arguments, the models."""
    for name in ("trajectories", "cutpoints", "advantages", "model", "reference_model"):
        value = getattr(config, name, None)
        yield from map(str, value) if isinstance(value, tuple) else [str(value)]


def _count_shards(resources: Mapping[str, Any], recipe: Recipe, plan: planning.Plan) -> dict[str, int]:
    """The shards of every stage that has them.

    Raises:
      UserError: more of them than questions, or than parts to follow.
    """
    shards = {stage: asked.num_shards for stage, asked in resources.items() if hasattr(asked, "num_shards")}
    questions = plan.iterations[0].rollout.num_questions if plan.iterations else None
    if questions is not None and shards["rollout"] > questions:
        raise UserError(
            f"{recipe.source}: num_shards = {shards['rollout']} in [slurm.rollout] or [slurm] is more than the "
            f"{questions} questions of an iteration"
        )
    for stage in ("segment", "estimate"):
        if "num_shards" in recipe.tables.get(f"slurm.{stage}", {}) and shards[stage] > shards["rollout"]:
            raise UserError(
                f"{recipe.source}: num_shards = {shards[stage]} in [slurm.{stage}], but `spo {stage}` follows its "
                f"input part by part, and [slurm.rollout] makes {shards['rollout']}"
            )
        shards[stage] = min(shards[stage], shards["rollout"])
    return shards


def _check_arrays(jobs: list[Job], largest: int | None) -> None:
    for job in jobs:
        if largest is not None and job.work.tasks > largest:
            enough = -(-job.work.num_shards // largest)
            raise UserError(
                f"the array of {job.work.name} has {job.work.tasks:,} tasks, and this cluster takes {largest:,} "
                f"(MaxArraySize): set shards_per_task = {enough} in [slurm.{job.work.stage}], or fewer shards"
            )


def _choose(
    config: Config, jobs: list[Job], stages: Mapping[str, StageProgress]
) -> tuple[list[Submission], list[tuple[str, str]]]:
    """The jobs to submit, and those in the queue to take back, as they wait for tasks that have failed.

    Raises:
      UserError: jobs of the run are in the queue, or what the first ones read is neither there nor on its way.
    """

    submissions, cancel = dict[str, Submission](), dict[str, str]()
    for job in jobs:
        if not config.includes(job.work.iteration):
            continue
        stage = stages[job.work.output]
        active = [piece.task for piece in stage.parts if piece.task and piece.state in ("running", "queued")]
        if active and not config.only_missing:
            raise UserError(
                f"{active[0].description}; it is {job.work.name} of this run. Wait for it, cancel it (scancel), or pass "
                "--only-missing to leave alone what is in the queue"
            )
        after = tuple(place for place in job.after if place in submissions)
        if active and after and all(task.phase == "queued" for task in active):
            cancel |= {task.job: job.work.name for task in active}  # SLURM would do so too, sooner or later
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
            running=_awaited(job, stages, submissions, cancel),
        )
    return list(submissions.values()), list(cancel.items())[::-1]


def _awaited(
    job: Job, stages: Mapping[str, StageProgress], submissions: Mapping[str, Submission], cancelled: Collection[str]
) -> tuple[str, ...]:
    """The jobs and tasks in the queue that a job must wait for.

    Raises:
      UserError: something that it reads is neither there, nor in the queue, nor being submitted.
    """
    awaited = dict[str, None]()
    for place in job.after:
        for piece in stages[place].parts:
            if piece.task and piece.state in ("running", "queued"):
                awaited |= {} if piece.task.job in cancelled else {piece.task.name: None}
            elif piece.state != "done" and place not in submissions:
                raise UserError(
                    f"{job.work.name} reads {place}, which is {piece.state} (part {piece.index}) and not among these "
                    "jobs: include its iteration, too, with --only-missing"
                )
    return tuple(awaited)


def _submit(script: Path) -> dict[str, str]:
    """Runs submit.sh; name → number of the jobs that SLURM took.

    Raises:
      UserError: SLURM is not there, or refuses one.
    """
    ended = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=False)
    told = [re.fullmatch(r"(\S+): job (\d+)", line) for line in ended.stderr.splitlines()]
    numbers = {match[1]: match[2] for match in told if match}
    if ended.returncode:
        problem = ended.stderr.strip().rpartition("\n")[2]
        raise UserError(
            f"{script} could not submit all jobs ({problem}); {len(numbers)} are in the queue. Mend it and run this "
            "again with --only-missing"
        )
    return numbers
