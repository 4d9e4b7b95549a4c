"""Owns how far a run is: for every part of every artefact, whether it is there, in the making, or given up."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stages.core.errors import UserError
from stages.slurm.jobs import MODEL_STAGES, STAGES, Work
from stages.slurm.queue import JobQueue, JobTask
from stages.slurm.records import FOLDER, LOGS, SubmittedJob

WorkState = Literal["done", "running", "queued", "failed", "missing"]
WORK_STATES: tuple[WorkState, ...] = ("done", "running", "queued", "failed", "missing")

_PART = re.compile(r"\.?part-(\d{5})-of-(\d{5})(?:\.parquet|\.log)?")
_HOLDER = re.compile(r"(.*), process (\d+)")
_MODEL_FILE, _METRICS_FILE = "spo.json", "metrics.jsonl"


@dataclass(frozen=True)
class PartProgress:
    """A part of an artefact, or a model.

    Attributes:
      index: of the part.
      state: failed is what was begun and is no longer worked on, for whatever reason; missing what never was.
      told: the last line of its log, or why it waits.
      task: of SLURM, the last one that it was given to.
    """

    index: int
    state: WorkState
    message: str = ""
    task: JobTask | None = None


@dataclass(frozen=True)
class StageProgress:
    """How far the work of one stage is."""

    work: Work
    parts: tuple[PartProgress, ...]

    @property
    def counts(self) -> dict[WorkState, int]:
        """Pieces by their state."""
        return {state: sum(piece.state == state for piece in self.parts) for state in WORK_STATES}

    def tasks_in(self, *states: WorkState) -> tuple[int, ...]:
        """The tasks of its array that have a piece in one of these states."""
        wanted = {piece.index for piece in self.parts if piece.state in states}
        return tuple(task for task in range(self.work.tasks) if wanted & set(self.work.parts_of_task(task)))


def stage_progress(run: Path, work: Work, submitted: Sequence[SubmittedJob], queue: JobQueue) -> StageProgress:
    """How far some work is, by what lies on the disk and what SLURM says of the jobs it was given to.

    It is done, too, where all of it lies there in another number of parts, as `spo run` makes it.

    Args:
      submitted: all jobs of the run, in order.
    """
    for parts in _splits((run / work.output).glob("part-*.parquet")) - {work.parts}:
        whole = dataclasses.replace(work, parts=parts, num_shards=parts, shards_per_task=1)
        if all(_path(run, whole, index).exists() for index in range(parts)):
            return StageProgress(whole, tuple(PartProgress(index, "done") for index in range(parts)))
    mine = [job for job in reversed(submitted) if job.name == work.name]
    tasks = dict[int, tuple[SubmittedJob, int]]()  # piece → who was given it last
    for task in range(work.tasks):
        if last := next((job for job in mine if job.has(task)), None):
            tasks |= dict.fromkeys(work.parts_of_task(task), (last, task))
    find = _model if work.stage in MODEL_STAGES else _part
    return StageProgress(work, tuple(find(run, work, index, tasks.get(index), queue) for index in range(work.parts)))


def check_split(run: Path, work: Work) -> None:
    """Refuse to make some work where parts of another split lie, or chunks of one.

    Raises:
      UserError: they do.
    """
    if work.stage not in ("rollout", "eval"):  # the others have the parts of their input
        return
    directory = run / work.output
    others = [path for path in directory.glob(".part-*") if _splits([path]) != {work.parts}]
    begun = [path for path in others if any(path.glob("chunk-*"))]
    for parts in _splits([*directory.glob("part-*.parquet"), *begun]) - {work.parts}:
        raise UserError(
            f"{directory} holds parts of another split (of {parts}; the jobs make {work.parts}): delete it, or set "
            f"num_shards = {parts} in [slurm.{work.stage}]; one that is whole is kept with --only-missing"
        )


def works_on_disk(run: Path) -> tuple[Work, ...]:
    """What a run was made of so far, where no plan says what it is to be."""
    found = list[Work]()
    for iteration in sorted(path for path in run.glob("[!._]*") if path.is_dir()):
        stages = [stage for stage in STAGES if stage != ("train" if iteration.name == "start" else "sft")]
        for stage in stages:
            directory = iteration / STAGES[stage]
            begun = directory.is_dir() or (stage in MODEL_STAGES and _unfinished(directory).is_dir())
            if begun:
                parts = 1 if stage in MODEL_STAGES else _count_parts(directory)
                found.append(Work(iteration.name, stage, parts, parts))
    order = {name: place for place, name in enumerate(sorted({work.iteration for work in found}, key=_iteration_order))}
    return tuple(sorted(found, key=lambda work: order[work.iteration]))


def _iteration_order(name: str) -> tuple[bool, str]:
    return name != "start", name


def _part(run: Path, work: Work, index: int, given: tuple[SubmittedJob, int] | None, queue: JobQueue) -> PartProgress:
    path = _path(run, work, index)
    task = queue.find(given[0].number, given[1]) if given else None
    if path.exists():
        return PartProgress(index, "done", task=task)
    begun = path.with_name(f".{path.stem}")
    logs = [path.parent / "_logs" / f"{path.stem}.log", *_job_logs(run, work, given)]
    alone = work.parts <= work.num_shards and work.shards_per_task == 1
    return _unfinished_piece(index, begun, logs, task, waits_its_turn=not alone and not begun.exists())


def _model(run: Path, work: Work, index: int, given: tuple[SubmittedJob, int] | None, queue: JobQueue) -> PartProgress:
    directory = run / work.output
    task = queue.find(given[0].number, given[1]) if given else None
    if (directory / _MODEL_FILE).exists():
        return PartProgress(index, "done", task=task)
    begun = _unfinished(directory)
    piece = _unfinished_piece(index, begun, _job_logs(run, work, given), task, waits_its_turn=False)
    steps = _count_lines(begun / _METRICS_FILE)
    if not steps or piece.state == "queued":
        return piece
    return PartProgress(index, piece.state, f"step {steps}{f': {piece.message}' if piece.message else ''}", task)


def _unfinished_piece(
    index: int, begun: Path, logs: Sequence[Path], task: JobTask | None, *, waits_its_turn: bool
) -> PartProgress:
    """A piece that is not there: what SLURM says of its task, else what its lock and its logs say."""
    told, age = _last_words(logs)
    if task and task.phase == "running" and not waits_its_turn:
        return PartProgress(index, "running", told, task)
    if task and task.phase != "ended":
        return PartProgress(index, "queued", task.description, task)
    if holder := _holder(begun, elsewhere=not task):
        return PartProgress(index, "running", f"{told} ({holder}{age})".lstrip())
    if task and task.state != "COMPLETED":
        began = told or begun.is_dir() or task.state != "CANCELLED"
        return PartProgress(index, "failed" if began else "missing", f"{task.description}{f'; {told}' if told else ''}", task)
    if begun.is_dir() or (told and not task and not told.startswith("finished: ")):
        return PartProgress(index, "failed", told)
    return PartProgress(index, "missing")


def _job_logs(run: Path, work: Work, given: tuple[SubmittedJob, int] | None) -> list[Path]:
    if not given:
        return []
    job, task = given
    number = f"{job.number}_{task}" if work.is_array else job.number
    return [run / FOLDER / LOGS / f"{work.name}-{number}.log"]


def _last_words(logs: Sequence[Path]) -> tuple[str, str]:
    """The last line of the log that was written to last, without its time, and how long ago that was."""
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
    """The process that works on a piece; "" where none does any longer.

    Args:
      elsewhere: believe a lock of another machine, where no process can be asked for.
    """
    with suppress(OSError):
        found = _HOLDER.fullmatch((begun / "lock").read_text(errors="replace"))
        if found and found[1] == os.uname().nodename:
            return f"process {found[2]}" if _lives(int(found[2])) else ""
        if found and elsewhere:
            return f"process {found[2]} on {found[1]}, which cannot be asked from here"
    return ""


def _lives(process: int) -> bool:
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
    """The numbers of parts that parts, and folders of their chunks, belong to."""
    return {int(match[2]) for path in paths if (match := _PART.fullmatch(path.name))}


def _unfinished(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.partial")


def _count_parts(directory: Path) -> int:
    found = [_PART.fullmatch(path.name) for path in (*directory.iterdir(), *directory.glob("_logs/*"))]
    return max([int(match[2]) for match in found if match], default=1)


def _count_lines(path: Path) -> int:
    with suppress(OSError):
        return path.read_bytes().count(b"\n")
    return 0


def count_states(stages: Sequence[StageProgress]) -> Mapping[WorkState, int]:
    """Pieces of all stages by their state."""
    return {state: sum(stage.counts[state] for stage in stages) for state in WORK_STATES}
