"""`spo slurm`: print the scripts (`--dry-run`), or their directory and the submitted jobs."""

from __future__ import annotations

from rich.text import Text

from spo_cli.console import print_line, print_results
from stages.configs.slurm import Config
from stages.core.progress import Progress, Silent
from stages.pipeline import slurm


def run(config: Config, progress: Progress = Silent()) -> slurm.Outcome:
    """Write, print or submit the jobs. Raises as `stages.pipeline.slurm.run`."""
    return slurm.run(config, progress)


def report(found: slurm.Outcome) -> None:
    """Print the scripts, or what was written and submitted."""
    if not found.written:
        print_line("\n".join(f"# === {found.folder / name}\n{text}" for name, text in found.files.items()).rstrip())
        return
    print_results(Text.assemble(("spo slurm", "bold"), f" → {found.folder}"))
    if not found.submissions:
        print_line("  nothing to submit: all jobs are done or in the queue")
    elif found.numbers:
        for one in found.submissions:
            work = one.job.work
            count = len(one.tasks) if one.tasks is not None else work.tasks
            print_line(f"  job {found.numbers[work.name]}  {work.name}{f', {count} tasks' if work.is_array else ''}")
        print_line(f"  to follow them, run: spo status {found.folder.parent}")
    else:
        jobs = "one job" if len(found.submissions) == 1 else f"{len(found.submissions)} jobs"
        print_line(f"  {jobs}; submit with: bash {found.folder / 'submit.sh'}")
