"""Owns what a recipe's `[slurm]` tables may say: what the jobs of a stage ask the cluster for. Nothing heavy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from stages.core.config import option, validate
from stages.core.errors import UserError

_EARLY = 60  # seconds by which SLURM may send a signal before it was asked to


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a job asks for, and what stands around its command."""

    partition: str | None = option("Partition of the cluster.", default=None)
    account: str | None = option("Account that is charged.", default=None)
    qos: str | None = option("Quality of service.", default=None)
    time: str | None = option("Time limit, as sbatch takes it: minutes, H:M:S or D-H:M:S.", default=None)
    gpus: str | None = option("GPUs of a task, or of each node of a training: 1, a100:4, or 0 for none.", default=None)
    cpus: int | None = option("CPUs of a process.", default=None, minimum=1)
    mem: str | None = option("Memory on each node, as sbatch takes it: 64G.", default=None)
    directives: tuple[str, ...] = option("Further options of sbatch, such as --exclusive.", default=())
    setup: tuple[str, ...] = option("Lines of shell before the command, such as module load cuda.", default=())
    container: str | None = option("Image that the command runs in.", default=None)
    container_runtime: Literal["apptainer", "singularity", "pyxis"] = option(
        "What runs the image: a program of this name, or srun's option --container-image.", default="apptainer"
    )
    container_options: tuple[str, ...] = option(
        "Its further options, such as --bind=/data, or --container-mounts=/data with pyxis.", default=()
    )
    signal_seconds: int = option(
        "How long before its time limit a task is told to commit what it has; it then goes back into the queue.",
        default=120,
        minimum=1,
        maximum=65535,
    )
    max_requeues: int = option("How often a task goes back into the queue.", default=100, minimum=0)

    def __post_init__(self) -> None:
        validate(self)
        limit = seconds(self.time) if self.time else None
        if limit is not None and limit <= self.signal_seconds + _EARLY:
            raise UserError(
                f"time {self.time} is {limit} s, and signal_seconds {self.signal_seconds} before its end a task stops, "
                f"or up to {_EARLY} s earlier, as SLURM sees fit: raise the one or lower the other"
            )

    @property
    def has_gpus(self) -> bool:
        """Whether it asks for any."""
        return self.gpus not in (None, "", "0")


def seconds(time: str) -> int:
    """Of a time limit as sbatch takes it: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    Raises:
      UserError: text of another form.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if not match:
        raise UserError(f"time must be minutes, H:M:S or D-H:M:S; got {time!r}")
    days, *given = (int(piece) if piece else None for piece in match.groups())
    fields = [piece for piece in given if piece is not None]
    if days is not None or len(fields) == 3:
        hours, minutes, rest = (*fields, 0, 0)[:3]
    else:
        hours, minutes, rest = 0, *(*fields, 0)[:2]
    return ((days or 0) * 24 + hours) * 3600 + minutes * 60 + rest


@dataclass(frozen=True, kw_only=True)
class ArrayResources(Resources):
    """Of a stage that writes an artefact part by part, as an array."""

    num_shards: int = option("Parts of the artefact.", default=1, minimum=1)
    shards_per_task: int = option(
        "Parts that one task of the array makes, where the cluster does not allow so many tasks.", default=1, minimum=1
    )
    max_parallel: int | None = option("Most tasks of the array that run at once.", default=None, minimum=1)


@dataclass(frozen=True, kw_only=True)
class RankResources(Resources):
    """Of `spo train`, which may run as several processes."""

    nodes: int = option("Nodes.", default=1, minimum=1)
    ranks: int = option("Processes on all nodes together, usually one for each GPU; srun starts them.", default=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ranks < self.nodes or self.ranks % self.nodes:
            raise UserError(
                f"ranks must be the same number on each node: expected a multiple of {self.nodes} (nodes), "
                f"got {self.ranks}"
            )
