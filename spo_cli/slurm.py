"""`spo slurm`: print the scripts (`--dry-run`), or their directory and the submitted jobs."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from spo_cli.console import print_line, print_results
from stages.configs.slurm import Config
from stages.core.progress import Progress, Silent
from stages.pipeline import slurm
from stages.slurm.scripts import Submission

_LIMITS = ("partition", "time", "nodes", "ranks", "gpus", "cpus", "mem", "max_parallel")
"""The resources that the summary shows, where they are set."""


def run(config: Config, progress: Progress = Silent()) -> slurm.Outcome:
    """Write, print or submit the jobs. Raises as `stages.pipeline.slurm.run`."""
    return slurm.run(config, progress)


def report(found: slurm.Outcome) -> None:
    """Print the scripts, or what was written and submitted."""
    if not found.written:
        scripts = [f"# === {found.folder / name}\n{text}" for name, text in found.files.items()]
        print_line("\n".join([*summary(found.submissions), *scripts]).rstrip())
        return
    print_results(Text.assemble(("spo slurm", "bold"), f" → {found.folder}"))
    if not found.submissions:
        print_line("  nothing to submit: all jobs are done or in the queue")
    elif found.numbers:
        for one in found.submissions:
            work = one.job.work
            tasks = f", {one.task_count} tasks" if work.is_array else ""
            print_line(f"  job {found.numbers[work.name]}  {work.name}{tasks}")
        print_line(f"  to follow them, run: spo status {found.folder.parent}")
    else:
        jobs = "one job" if len(found.submissions) == 1 else f"{len(found.submissions)} jobs"
        print_line(f"  {jobs}; submit with: bash {found.folder / 'submit.sh'}")


def summary(submissions: Sequence[Submission]) -> list[str]:
    """Return the jobs, tasks and limits of each stage, as comments of a shell script."""
    if not submissions:
        return ["# Nothing to submit: all jobs are done or in the queue."]
    stages: dict[str, list[Submission]] = {}
    for one in submissions:
        stages.setdefault(one.job.work.stage, []).append(one)
    lines = [
        f"# {_counts(submissions)}. Each stage, with the limits of a task (those of the cluster where none is set):"
    ]
    for stage, jobs in stages.items():
        resources = jobs[0].job.resources
        values = {name: getattr(resources, name, None) for name in _LIMITS}
        limits = ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
        lines.append(f"#   {stage:9} {_counts(jobs)}{f'; {limits}' if limits else ''}")
    return lines


def _counts(submissions: Sequence[Submission]) -> str:
    tasks = sum(one.task_count for one in submissions)
    jobs = "1 job" if len(submissions) == 1 else f"{len(submissions):,} jobs"
    return f"{jobs}, {tasks:,} {'task' if tasks == 1 else 'tasks'}"
