"""The state of jobs as SLURM reports it: squeue for jobs that it still knows, sacct for older ones."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Literal

_TIMEOUT = 60
"""Seconds that a command of SLURM may take."""
_WAITING = {
    "PENDING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
    "SPECIAL_EXIT",
    "RESV_DEL_HOLD",
    "SUSPENDED",
    "STOPPED",
}
_AT_WORK = {"RUNNING", "CONFIGURING", "COMPLETING", "STAGE_OUT", "SIGNALING", "RESIZING"}


@dataclass(frozen=True)
class JobTask:
    """A job, or one task of a job array.

    Attributes:
      job, task: the number of the job, and the number of the task in the array (None: not an array).
      state: the state that SLURM reports: PENDING, RUNNING, COMPLETED, FAILED, TIMEOUT …
      reason: why it waits or failed; "" if SLURM reports no reason.
    """

    job: str
    task: int | None
    state: str
    reason: str = ""

    @property
    def name(self) -> str:
        """Return the name that the commands of SLURM accept: `12_3`."""
        return self.job if self.task is None else f"{self.job}_{self.task}"

    @property
    def phase(self) -> Literal["queued", "running", "ended"]:
        """Return the phase that the state belongs to."""
        return "queued" if self.state in _WAITING else "running" if self.state in _AT_WORK else "ended"

    @property
    def description(self) -> str:
        """Return the state for messages: `job 12_3: FAILED, NonZeroExitCode`."""
        return f"job {self.name}: {self.state}{f', {self.reason}' if self.reason else ''}"


@dataclass(frozen=True)
class JobQueue:
    """The answer of SLURM.

    Attributes:
      tasks: (job, task) → the task.
      problem: why SLURM gave no answer; None if it did, or if there was no job to query.
    """

    tasks: dict[tuple[str, int | None], JobTask] = field(default_factory=dict)
    problem: str | None = None

    def find(self, job: str, task: int) -> JobTask | None:
        """Return a task of an array, or else the single job of that number; None if SLURM does not know it."""
        return self.tasks.get((job, task)) or self.tasks.get((job, None))


def query_jobs(jobs: Collection[str]) -> JobQueue:
    """Query SLURM about these jobs; jobs that it no longer knows are left out."""
    if not jobs:
        return JobQueue()
    if not shutil.which("squeue"):
        return JobQueue(problem="squeue is not on this machine: the state of the jobs is unknown")
    columns = "ArrayJobID:|,ArrayTaskID:|,State:|,Reason:"
    answer = _call("squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(jobs)}", f"--Format={columns}")
    if answer.returncode and "Invalid job id" not in answer.stderr:
        return JobQueue(problem=f"squeue failed ({_last_line(answer.stderr)}): the state of the jobs is unknown")
    found = list(_of_squeue(answer.stdout))
    forgotten = set(jobs) - {task.job for task in found}
    if forgotten and shutil.which("sacct"):
        selection = f"--jobs={','.join(sorted(forgotten))}"
        answer = _call("sacct", "--noheader", "--parsable2", "--allocations", selection, "--format=JobID,State")
        found += _of_sacct(answer.stdout) if not answer.returncode else ()  # fails on clusters without accounting
    return JobQueue({(task.job, task.task): task for task in found})


def largest_array() -> int | None:
    """Return MaxArraySize of the cluster, the limit on array tasks; None if SLURM does not answer."""
    if not shutil.which("scontrol"):
        return None
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _call("scontrol", "show", "config").stdout, re.MULTILINE)
    return int(found[1]) if found else None


def _of_squeue(text: str) -> Iterator[JobTask]:
    for line in text.splitlines():
        job, task, state, reason = (field.strip() for field in line.split("|", 3))
        yield JobTask(job, int(task) if task.isdigit() else None, state, "" if reason == "None" else reason)


def _of_sacct(text: str) -> Iterator[JobTask]:
    for line in text.splitlines():
        name, _, state = line.partition("|")
        found = re.fullmatch(r"(\d+)(?:_(\d+))?", name)
        if found and state:  # skips 12_[3-5]: tasks that never began
            yield JobTask(found[1], int(found[2]) if found[2] else None, state.split()[0])


def _call(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer within {_TIMEOUT} s")


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2] or "no error message"
