"""The progress of a run: the state of every part of every output, from the files on disk and from SLURM."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from stages.core.paths import log_directory
from stages.slurm.activity import Activity, of_model, of_part
from stages.slurm.jobs import MODEL_STAGES, STAGES, Work
from stages.slurm.queue import JobQueue, JobTask
from stages.slurm.records import FOLDER, LOGS, SubmittedJob

WorkState = Literal["done", "running", "queued", "failed", "missing"]
WORK_STATES: tuple[WorkState, ...] = ("done", "running", "queued", "failed", "missing")

_PART = re.compile(r"\.?part-(\d{5})-of-(\d{5})(?:\.parquet|\.log)?")
_HOLDER = re.compile(r"(.*), process (\d+)")  # the content of a lock (`stages.shards.disk`)
_MODEL_FILE, _METRICS_FILE = "spo.json", "metrics.jsonl"


@dataclass(frozen=True)
class PartProgress:
    """The progress of one part of an artefact, or of a model.

    Attributes:
      index: the number of the part; 0 for a model.
      state: `failed` if work on it began and nothing works on it now, for whatever reason; `missing` if none began.
      message: the last line of its log, or why its task waits.
      task: the last SLURM task that was submitted for it.
      activity: rate, time left, reward and last warning of work that began and is not done.
    """

    index: int
    state: WorkState
    message: str = ""
    task: JobTask | None = None
    activity: Activity = field(default_factory=Activity)


@dataclass(frozen=True)
class StageProgress:
    """The progress of the work of one stage: one entry per part."""

    work: Work
    parts: tuple[PartProgress, ...]

    @property
    def counts(self) -> dict[WorkState, int]:
        """Return the number of parts in each state."""
        return {state: sum(part.state == state for part in self.parts) for state in WORK_STATES}

    def tasks_in(self, *states: WorkState) -> tuple[int, ...]:
        """Return the tasks of its array that have a part in one of these states."""
        indices = {part.index for part in self.parts if part.state in states}
        return tuple(task for task in range(self.work.tasks) if indices & set(self.work.parts_of_task(task)))


def stage_progress(run: Path, work: Work, submitted: Sequence[SubmittedJob], queue: JobQueue) -> StageProgress:
    """Return the progress of some work, from the files on disk and the state of its jobs in SLURM.

    The work is also done if its output is complete in another number of parts, as `spo run` writes it.

    Args:
      run: the directory of the run.
      work: the work.
      submitted: all jobs of the run, in the order of submission.
      queue: the state of the jobs in SLURM.
    """
    for parts in _splits((run / work.output).glob("part-*.parquet")) - {work.parts}:
        other_split = dataclasses.replace(work, parts=parts, num_shards=parts, shards_per_task=1)
        if all(_path(run, other_split, index).exists() for index in range(parts)):
            return StageProgress(other_split, tuple(PartProgress(index, "done") for index in range(parts)))
    jobs = [job for job in reversed(submitted) if job.name == work.name]  # the last submission first
    tasks = dict[int, tuple[SubmittedJob, int]]()  # part → the last job and task for it
    for task in range(work.tasks):
        if last := next((job for job in jobs if job.has(task)), None):
            tasks |= dict.fromkeys(work.parts_of_task(task), (last, task))
    find = _model_progress if work.stage in MODEL_STAGES else _part_progress
    return StageProgress(work, tuple(find(run, work, index, tasks.get(index), queue) for index in range(work.parts)))


def works_on_disk(run: Path) -> tuple[Work, ...]:
    """Return the work that is found on disk, for a run without a plan."""
    found = list[Work]()
    for iteration in sorted(path for path in run.glob("[!._]*") if path.is_dir()):
        stages = [stage for stage in STAGES if stage != ("train" if iteration.name == "start" else "sft")]
        for stage in stages:
            directory = iteration / STAGES[stage]
            evidence = _unfinished(directory) if stage in MODEL_STAGES else log_directory(directory)
            begun = directory.is_dir() or evidence.is_dir()
            if begun:
                parts = 1 if stage in MODEL_STAGES else _count_parts(directory)
                found.append(Work(iteration.name, stage, parts, parts))
    order = {
        name: position for position, name in enumerate(sorted({work.iteration for work in found}, key=_iteration_order))
    }
    return tuple(sorted(found, key=lambda work: order[work.iteration]))


def _iteration_order(name: str) -> tuple[bool, str]:
    return name != "start", name


def _part_progress(
    run: Path, work: Work, index: int, given: tuple[SubmittedJob, int] | None, queue: JobQueue
) -> PartProgress:
    path = _path(run, work, index)
    task = queue.find(given[0].number, given[1]) if given else None
    if path.exists():
        return PartProgress(index, "done", task=task)
    begun = path.with_name(f".{path.stem}")
    logs = [log_directory(path.parent) / f"{path.stem}.log", *_job_logs(run, work, given)]
    # A task that makes several parts makes them one after the other.
    one_part_per_task = work.parts <= work.num_shards and work.shards_per_task == 1
    may_wait = not one_part_per_task and not begun.exists()
    progress = _unfinished_progress(index, begun, logs, task, waits_in_task=may_wait)
    if progress.state not in ("running", "failed"):
        return progress
    return dataclasses.replace(progress, activity=of_part(logs[0], begun, datetime.now(UTC)))


def _model_progress(
    run: Path, work: Work, index: int, given: tuple[SubmittedJob, int] | None, queue: JobQueue
) -> PartProgress:
    directory = run / work.output
    task = queue.find(given[0].number, given[1]) if given else None
    if (directory / _MODEL_FILE).exists():
        return PartProgress(index, "done", task=task)
    begun = _unfinished(directory)
    progress = _unfinished_progress(index, begun, _job_logs(run, work, given), task, waits_in_task=False)
    steps = _count_lines(begun / _METRICS_FILE)
    if not steps or progress.state == "queued":
        return progress
    message = f"step {steps}: {progress.message}" if progress.message else f"step {steps}"
    return PartProgress(index, progress.state, message, task, of_model(begun / _METRICS_FILE))


def _unfinished_progress(
    index: int, begun: Path, logs: Sequence[Path], task: JobTask | None, *, waits_in_task: bool
) -> PartProgress:
    """Return the progress of a part that is not finished: from SLURM if it knows its task, else from lock and logs.

    Args:
      begun: the directory of its chunks or of its checkpoint.
      waits_in_task: whether a running task may not have reached this part yet.
    """
    line, age = _last_line(logs)
    if task and task.phase == "running" and not waits_in_task:
        return PartProgress(index, "running", line, task)
    if task and task.phase != "ended":
        return PartProgress(index, "queued", task.description, task)
    if holder := _holder(begun, elsewhere=not task):
        return PartProgress(index, "running", f"{line} ({holder}{age})".lstrip())
    if task and task.state != "COMPLETED":
        began = line or begun.is_dir() or task.state != "CANCELLED"
        return PartProgress(
            index, "failed" if began else "missing", f"{task.description}{f'; {line}' if line else ''}", task
        )
    # A log that ends with "finished: " without a part belongs to a part that was deleted, not to one that failed.
    if begun.is_dir() or (line and not task and not line.startswith("finished: ")):
        return PartProgress(index, "failed", line)
    return PartProgress(index, "missing")


def _job_logs(run: Path, work: Work, given: tuple[SubmittedJob, int] | None) -> list[Path]:
    if not given:
        return []
    job, task = given
    number = f"{job.number}_{task}" if work.is_array else job.number
    return [run / FOLDER / LOGS / f"{work.name}-{number}.log"]


def _last_line(logs: Sequence[Path]) -> tuple[str, str]:
    """Return the last line of the log that was written last, without its time, and how long ago it was written."""
    written = {path.stat().st_mtime: path for path in logs if path.is_file() and path.stat().st_size}
    if not written:
        return "", ""
    when = max(written)
    with written[when].open("rb") as file:
        file.seek(max(0, written[when].stat().st_size - 4096))
        lines = file.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return re.sub(r"^\d{4}-\d\d-\d\dT\S+ ", "", last), f", {_ago(time.time() - when)} ago"


def _ago(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _holder(begun: Path, *, elsewhere: bool) -> str:
    """Return the process that holds the lock of a part; "" if there is none.

    Args:
      begun: the directory with the lock.
      elsewhere: trust the lock of a process on another machine, although it cannot be checked from here.
    """
    with suppress(OSError):
        found = _HOLDER.fullmatch((begun / "lock").read_text(errors="replace"))
        if found and found[1] == os.uname().nodename:
            return f"process {found[2]}" if _is_alive(int(found[2])) else ""
        if found and elsewhere:
            return f"process {found[2]} on {found[1]}, which cannot be checked from here"
    return ""


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _path(run: Path, work: Work, index: int) -> Path:
    return run / work.output / f"part-{index:05d}-of-{work.parts:05d}.parquet"


def _splits(paths: Iterable[Path]) -> set[int]:
    """Return the splits (numbers of parts) that part files and directories of chunks belong to, from their names."""
    return {int(match[2]) for path in paths if (match := _PART.fullmatch(path.name))}


def _unfinished(directory: Path) -> Path:
    """Return the directory in which a training run keeps its checkpoint until the model is finished."""
    return directory.with_name(f".{directory.name}.partial")


def _count_parts(directory: Path) -> int:
    found = [_PART.fullmatch(path.name) for path in (*directory.glob("*"), *log_directory(directory).glob("*"))]
    return max([int(match[2]) for match in found if match], default=1)


def _count_lines(path: Path) -> int:
    with suppress(OSError):
        return path.read_bytes().count(b"\n")
    return 0


def count_states(stages: Sequence[StageProgress]) -> Mapping[WorkState, int]:
    """Return the number of parts of all stages in each state."""
    return {state: sum(stage.counts[state] for stage in stages) for state in WORK_STATES}
