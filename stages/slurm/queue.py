"""Owns what SLURM says of jobs, from whichever of its commands answers: squeue for those it still knows, else sacct."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Literal

_SECONDS = 60  # that a command of SLURM may take to answer
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
    """A job, or a task of an array.

    Attributes:
      job, task: its number, and that within the array.
      state: as SLURM says it: PENDING, RUNNING, COMPLETED, FAILED, TIMEOUT …
      reason: why it waits or has failed; "" where SLURM does not say.
    """

    job: str
    task: int | None
    state: str
    reason: str = ""

    @property
    def name(self) -> str:
        """As SLURM takes it: `12_3`."""
        return self.job if self.task is None else f"{self.job}_{self.task}"

    @property
    def phase(self) -> Literal["queued", "running", "ended"]:
        """Where it is on its way."""
        return "queued" if self.state in _WAITING else "running" if self.state in _AT_WORK else "ended"

    @property
    def description(self) -> str:
        """`job 12_3: FAILED, NonZeroExitCode`."""
        return f"job {self.name}: {self.state}{f', {self.reason}' if self.reason else ''}"


@dataclass(frozen=True)
class JobQueue:
    """What SLURM said.

    Attributes:
      tasks: by job and task.
      problem: why it could not be asked; None where it answered, or where no job needs it.
    """

    tasks: dict[tuple[str, int | None], JobTask] = field(default_factory=dict)
    problem: str | None = None

    def find(self, job: str, task: int) -> JobTask | None:
        """A task, or the job of which it is all."""
        return self.tasks.get((job, task)) or self.tasks.get((job, None))


def query_jobs(jobs: Collection[str]) -> JobQueue:
    """What SLURM knows of these jobs; those that it has forgotten are left out."""
    if not jobs:
        return JobQueue()
    if not shutil.which("squeue"):
        return JobQueue(problem="squeue is not on this machine: what the jobs do is not known")
    columns = "ArrayJobID:|,ArrayTaskID:|,State:|,Reason:"
    answer = _call("squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(jobs)}", f"--Format={columns}")
    if answer.returncode and "Invalid job id" not in answer.stderr:
        return JobQueue(problem=f"squeue does not answer ({_last_line(answer.stderr)}): what the jobs do is not known")
    found = list(_of_squeue(answer.stdout))
    forgotten = set(jobs) - {task.job for task in found}
    if forgotten and shutil.which("sacct"):
        wanted = f"--jobs={','.join(sorted(forgotten))}"
        answer = _call("sacct", "--noheader", "--parsable2", "--allocations", wanted, "--format=JobID,State")
        found += _of_sacct(answer.stdout) if not answer.returncode else ()  # many clusters keep no accounts
    return JobQueue({(task.job, task.task): task for task in found})


def largest_array() -> int | None:
    """The most tasks that an array may have here; None where SLURM does not answer."""
    if not shutil.which("scontrol"):
        return None
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _call("scontrol", "show", "config").stdout, re.MULTILINE)
    return int(found[1]) if found else None


def _of_squeue(text: str) -> Iterator[JobTask]:
    for line in text.splitlines():
        job, task, state, reason = (piece.strip() for piece in line.split("|", 3))
        yield JobTask(job, int(task) if task.isdigit() else None, state, "" if reason == "None" else reason)


def _of_sacct(text: str) -> Iterator[JobTask]:
    for line in text.splitlines():
        name, _, state = line.partition("|")
        found = re.fullmatch(r"(\d+)(?:_(\d+))?", name)
        if found and state:  # tasks that never began stand together as 12_[3-5]
            yield JobTask(found[1], int(found[2]) if found[2] else None, state.split()[0])


def _call(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer within {_SECONDS} s")


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2] or "it says nothing"
