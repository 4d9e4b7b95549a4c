"""Owns the shell that is written for SLURM: a script for each job, what they share, and the one that submits them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.configs.resources import ArrayResources, RankResources, Resources
from stages.core.errors import UserError
from stages.slurm.jobs import Job, Work
from stages.slurm.records import FOLDER, LOGS, SUBMITTED

SHARED, SUBMIT = "requeue.sh", "submit.sh"
"""What the scripts share, and what submits them."""

REQUEUE = """\
# What every script here does around its command. Before the time limit (and before a preemption, where the cluster is
# set to) SLURM sends SIGUSR1 to the script. The command gets it too, keeps what it has committed and leaves; the task
# then goes back into the queue under its own number, and resumes there inside its part.
told= command= again=
hear() {
  told=$1 again=yes
  [[ ! $command ]] || kill -"$told" "$command" 2>/dev/null || true
}
trap 'hear USR1' USR1 # from here on, as it may come amid the lines of setup
run() {
  local status code=4
  if [[ ! $told ]]; then
    "$@" &
    command=$!
    trap 'hear TERM' TERM
    [[ ! $told ]] || hear "$told" # it came just now
    again=yes code=127
    while [[ $again ]]; do # a signal ends `wait` before the command has ended
      again=
      status=0
      wait "$command" || status=$?
      [[ $status == 127 ]] || code=$status # 127: it has ended, and an earlier `wait` has said how
    done
  fi
  if [[ $told == USR1 && $code != 0 && ${SLURM_RESTART_COUNT:-0} -lt $max_requeues ]]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
  elif [[ $told == USR1 && $code != 0 ]]; then
    echo "not requeued: this was attempt $((SLURM_RESTART_COUNT + 1)), and max_requeues is $max_requeues" >&2
  fi
  exit "$code"
}
"""


@dataclass(frozen=True)
class Submission:
    """A job that is to be submitted.

    Attributes:
      tasks: of its array, where not all.
      after: the places of jobs submitted with it that it waits for.
      running: jobs or tasks already in the queue that it waits for, as SLURM names them.
    """

    job: Job
    tasks: tuple[int, ...] | None = None
    after: tuple[str, ...] = ()
    running: tuple[str, ...] = ()


def job_script(job: Job, run: Path, recipe: Path, directory: Path) -> str:
    """The script of one job.

    Args:
      run: the directory of the run, absolute or from `directory`.
      directory: where the command is run.

    Raises:
      UserError: a line in the wrong place, or a path that SLURM would read otherwise.
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
        *job.resources.setup,
        "",
        "run " + " \\\n  ".join([*([shlex.join(job.launcher())] if job.launcher() else []), *job.command()]),
    ]
    return "\n".join(lines) + "\n"


def _title(work: Work) -> str:
    return f"{'Start' if work.iteration == 'start' else f'Iteration {work.iteration}'}, {work.stage}"


def _directives(job: Job, run: Path, directory: Path) -> Iterator[str]:
    asked, work = job.resources, job.work
    number = "%A_%a" if work.is_array else "%j"
    for path in (directory, run):
        if "%" in str(path):
            raise UserError(f"{path} has a % in it, which SLURM reads as a sign for something else: choose another")
    yield f"--job-name={shlex.quote(f'{run.name}-{work.name}')}"
    yield f"--chdir={shlex.quote(str(directory))}"
    yield f"--output={shlex.quote(str(run / FOLDER / LOGS / f'{work.name}-{number}.log'))}"
    yield "--open-mode=append"
    if work.is_array:
        yield f"--array={array(range(work.tasks), asked)}"
    for name in ("partition", "account", "qos", "time", "mem"):
        if value := getattr(asked, name):
            yield f"--{name}={value}"
    if asked.has_gpus:
        yield f"--gres=gpu:{asked.gpus}"
    if asked.cpus:
        yield f"--cpus-per-task={asked.cpus}"
    if isinstance(asked, RankResources) and asked.ranks > 1:
        yield f"--nodes={asked.nodes}"
        yield f"--ntasks-per-node={asked.ranks // asked.nodes}"
    yield "--requeue"
    yield f"--signal=B:USR1@{asked.signal_seconds}"
    yield from asked.directives


def array(tasks: Sequence[int], resources: Resources) -> str:
    """Tasks as sbatch takes them: `0-7`, `2,5-6%4`."""
    runs = list[list[int]]()
    for task in tasks:
        if runs and task == runs[-1][-1] + 1:
            runs[-1].append(task)
        else:
            runs.append([task])
    written = ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    limit = resources.max_parallel if isinstance(resources, ArrayResources) else None
    return f"{written}%{limit}" if limit else written


def submit_script(submissions: Sequence[Submission], cancel: Sequence[tuple[str, str]], run: Path, recipe: Path) -> str:
    """The script that submits jobs, each to begin once those that it reads from have ended well.

    Args:
      cancel: jobs of the queue that wait for what will not come: number and name.
    """
    head = f"""\
#!/usr/bin/env bash
# Submits the jobs of {run}, each to begin once those it reads from have ended well. Written by `spo slurm {recipe}`.
set -euo pipefail
cd "$(dirname "${{BASH_SOURCE[0]}}")"
mkdir -p {LOGS}
unset "${{!SLURM_ARRAY_@}}" "${{!SLURM_STEP_@}}" SLURM_RESTART_COUNT # of a job that this may run in: not of these

# submit NAME AFTER [OPTION...]: hands NAME.sbatch to SLURM, notes its number in {SUBMITTED}, and prints it.
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
    lines = [f"scancel {number} # {name} waits for tasks that have failed" for number, name in cancel]
    names = {one.job.work.output: _variable(one.job.work) for one in submissions}
    for one in submissions:
        needs = ":".join([*(f"${names[place]}" for place in one.after), *one.running])
        which = f" --array={array(one.tasks, one.job.resources)}" if one.tasks is not None else ""
        lines.append(f'{_variable(one.job.work)}=$(submit {one.job.work.name} "{needs}"{which})')
    return "\n".join([head, *lines]) + "\n"


def _variable(work: Work) -> str:
    """A name for the shell: `rollout_000`."""
    return f"{work.stage}_{work.iteration}"
