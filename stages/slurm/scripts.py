"""Shell scripts for SLURM: one per job, one that they share, and one that submits the jobs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.configs.resources import ArrayResources, RankResources, Resources
from stages.core.errors import UserError
from stages.core.paths import AnyPath
from stages.slurm.jobs import Job, Work
from stages.slurm.records import FOLDER, LOGS, SUBMITTED

SHARED, SUBMIT = "requeue.sh", "submit.sh"
"""Names of the script that all jobs share and of the script that submits them."""

REQUEUE = """\
# Runs the command of a job and requeues the job after SIGUSR1. SLURM sends that signal to the script before the time
# limit (and before a preemption, if the cluster is configured so). The script forwards it to the command, which keeps
# its committed work and exits. The task then goes back into the queue under its own number and resumes its part.
received= command= again=
forward() {
  received=$1 again=yes
  [[ ! $command ]] || kill -"$received" "$command" 2>/dev/null || true
}
trap 'forward USR1' USR1 # set first, because the signal can arrive during the setup lines
run() {
  local status code=4
  if [[ ! $received ]]; then
    "$@" &
    command=$!
    trap 'forward TERM' TERM
    [[ ! $received ]] || forward "$received" # it arrived before `command` was set
    again=yes code=127
    while [[ $again ]]; do # a signal ends `wait` before the command has ended
      again=
      status=0
      wait "$command" || status=$?
      [[ $status == 127 ]] || code=$status # 127: the command has ended, and an earlier `wait` returned its status
    done
  fi
  if [[ $received == USR1 && $code != 0 && ${SLURM_RESTART_COUNT:-0} -lt $max_requeues ]]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
  elif [[ $received == USR1 && $code != 0 ]]; then
    echo "not requeued: this was attempt $((SLURM_RESTART_COUNT + 1)), and max_requeues is $max_requeues" >&2
  fi
  exit "$code"
}
"""
"""Text of requeue.sh. The scripts of all jobs source it."""


@dataclass(frozen=True)
class Submission:
    """A job that the submit script submits.

    Attributes:
      job: the job.
      tasks: the tasks of its array to submit; None: all of them.
      after: the outputs of jobs in the same script that it waits for (`Work.output`).
      running: jobs or tasks already in the queue that it waits for, by their names in SLURM.
    """

    job: Job
    tasks: tuple[int, ...] | None = None
    after: tuple[str, ...] = ()
    running: tuple[str, ...] = ()

    @property
    def task_count(self) -> int:
        """Return the number of tasks that are submitted; 1 for a job without an array."""
        return self.job.work.tasks if self.tasks is None else len(self.tasks)


def job_script(job: Job, run: Path, recipe: AnyPath, directory: Path) -> str:
    """Return the script of one job.

    Args:
      job: the job.
      run: the directory of the run, absolute or relative to `directory`.
      recipe: the path of the recipe, for the comment in the script.
      directory: the working directory of the command.

    Raises:
      UserError: a path contains `%`, which SLURM replaces in file names.
    """
    work = job.work
    many = f"{work.parts} parts, {work.tasks} tasks" if work.is_array else "one job"
    lines = [
        "#!/usr/bin/env bash",
        f"# {_title(work)}: {run / work.output}, {many}. Written by `spo slurm {recipe}`.",
        *(f"#SBATCH {directive}" for directive in _directives(job, run, directory)),
        "set -e",
        f"max_requeues={job.resources.max_requeues}",
        f"source {shlex.quote(str(run / FOLDER / SHARED))}",
        *(line for text in job.resources.setup for line in text.split("\n")),
        "",
        "run " + " \\\n  ".join([*([shlex.join(job.launcher())] if job.launcher() else []), *job.command()]),
    ]
    return "\n".join([*map(_printable, lines[:-2]), *lines[-2:]]) + "\n"


def _printable(line: str) -> str:
    """Return a line of a script.

    Raises:
      UserError: it has a line break or a control character, so that a part of it would become a command.
    """
    if not line.replace("\t", " ").isprintable():
        raise UserError(f"{line!r:.200} would be a line of a script, and has a line break or a control character")
    return line


def _title(work: Work) -> str:
    return f"{'Start' if work.iteration == 'start' else f'Iteration {work.iteration}'}, {work.stage}"


def _directives(job: Job, run: Path, directory: Path) -> Iterator[str]:
    resources, work = job.resources, job.work
    number = "%A_%a" if work.is_array else "%j"
    for path in (directory, run):
        if "%" in str(path):
            raise UserError(f"{path} contains %, which SLURM replaces in paths: choose another path")
    yield f"--job-name={shlex.quote(f'{run.name}-{work.name}')}"
    yield f"--chdir={shlex.quote(str(directory))}"
    yield f"--output={shlex.quote(str(run / FOLDER / LOGS / f'{work.name}-{number}.log'))}"
    yield "--open-mode=append"
    if work.is_array:
        yield f"--array={array(range(work.tasks), resources)}"
    for name in ("partition", "account", "qos", "time", "mem"):
        if value := getattr(resources, name):
            yield f"--{name}={value}"
    if resources.has_gpus:
        yield f"--gres=gpu:{resources.gpus}"
    if resources.cpus:
        yield f"--cpus-per-task={resources.cpus}"
    if isinstance(resources, RankResources) and resources.ranks > 1:
        yield f"--nodes={resources.nodes}"
        yield f"--ntasks-per-node={resources.ranks // resources.nodes}"
    yield "--requeue"
    yield f"--signal=B:USR1@{resources.signal_seconds}"
    yield from resources.directives


def array(tasks: Sequence[int], resources: Resources) -> str:
    """Return task numbers in the notation of sbatch: `0-7`, `2,5-6%4`."""
    runs = list[list[int]]()
    for task in tasks:
        if runs and task == runs[-1][-1] + 1:
            runs[-1].append(task)
        else:
            runs.append([task])
    numbers = ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    limit = resources.max_parallel if isinstance(resources, ArrayResources) else None
    return f"{numbers}%{limit}" if limit else numbers


def submit_script(
    submissions: Sequence[Submission], cancel: Sequence[tuple[str, str]], run: Path, recipe: AnyPath
) -> str:
    """Return the script that submits jobs; each begins when the jobs whose outputs it reads have succeeded.

    Args:
      submissions: the jobs in the order of submission.
      cancel: (number, name) of jobs in the queue that wait for tasks that failed and are therefore canceled.
      run: the directory of the run.
      recipe: the path of the recipe, for the comment in the script.
    """
    _printable(f"{run}{recipe}")
    head = f"""\
#!/usr/bin/env bash
# Submits the jobs of {run}. Written by `spo slurm {recipe}`.
# Each job begins when the jobs that it reads from have succeeded.
set -euo pipefail
cd "$(dirname "${{BASH_SOURCE[0]}}")"
mkdir -p {LOGS}
unset "${{!SLURM_ARRAY_@}}" "${{!SLURM_STEP_@}}" SLURM_RESTART_COUNT # set if this script itself runs inside a job

# submit NAME AFTER [OPTION...]: submits NAME.sbatch, records its number in {SUBMITTED}, and prints the number.
submit() {{
  local name=$1 after=$2 number
  shift 2
  number=$(sbatch --parsable --kill-on-invalid-dep=yes ${{after:+"--dependency=afterok:$after"}} "$@" "$name.sbatch") ||
    exit 1
  printf '%s\\t%s\\t%s\\n' "$name" "${{number%;*}}" "${{*#--array=}}" >>{SUBMITTED}
  echo "$name: job ${{number%;*}}" >&2
  echo "${{number%;*}}"
}}
"""
    lines = [f"scancel {number} # {name} waits for tasks that failed" for number, name in cancel]
    names = {one.job.work.output: _variable(one.job.work) for one in submissions}
    for one in submissions:
        needs = ":".join([*(f"${names[place]}" for place in one.after), *one.running])
        which = f" --array={array(one.tasks, one.job.resources)}" if one.tasks is not None else ""
        lines.append(f'{_variable(one.job.work)}=$(submit {one.job.work.name} "{needs}"{which})')
    return "\n".join([head, *lines]) + "\n"


def _variable(work: Work) -> str:
    """Return the shell variable that holds the number of the job: `rollout_000`."""
    return f"{work.stage}_{work.iteration}"
