"""Define the options of a recipe's `[slurm]` tables: the resources of the jobs of each stage."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from stages.core.config import option, validate
from stages.core.errors import UserError

_EARLY = 60  # seconds; SLURM may send a signal up to this much before the requested time (sbatch --signal)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Resources of a job, and the lines around its command."""

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
        "Runtime of the image: a program of this name, or, for pyxis, srun's option --container-image.",
        default="apptainer",
    )
    container_options: tuple[str, ...] = option(
        "Further options of the container runtime, such as --bind=/data, or --container-mounts=/data with pyxis.",
        default=(),
    )
    signal_seconds: int = option(
        "Seconds before the time limit at which a task commits its finished work and returns to the queue.",
        default=120,
        minimum=1,
        maximum=65535,
    )
    max_requeues: int = option("Maximum number of times that a task returns to the queue.", default=100, minimum=0)

    def __post_init__(self) -> None:
        validate(self)
        limit = parse_time_limit(self.time) if self.time else None
        if limit is not None and limit <= self.signal_seconds + _EARLY:
            raise UserError(
                f"time must be more than signal_seconds + {_EARLY} s, because a task stops signal_seconds "
                f"({self.signal_seconds}) before its time limit, or up to {_EARLY} s earlier; got {self.time}, which "
                f"is {limit} s: raise time, or lower signal_seconds"
            )

    @property
    def has_gpus(self) -> bool:
        """Whether the job requests GPUs."""
        return self.gpus not in (None, "", "0")


def parse_time_limit(time: str) -> int:
    """Return the seconds of a time limit in sbatch's notation: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    Raises:
      UserError: text of another form.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if not match:
        raise UserError(f"time must be minutes, H:M:S or D-H:M:S; got {time!r}")
    days, *given = (int(number) if number else None for number in match.groups())
    fields = [number for number in given if number is not None]
    if days is not None or len(fields) == 3:
        hours, minutes, rest = (*fields, 0, 0)[:3]
    else:
        hours, minutes, rest = 0, *(*fields, 0)[:2]
    return ((days or 0) * 24 + hours) * 3600 + minutes * 60 + rest


@dataclass(frozen=True, kw_only=True)
class ArrayResources(Resources):
    """Resources of a stage that writes an artefact in parts, as a job array."""

    num_shards: int = option("Number of parts of the artefact.", default=1, minimum=1)
    shards_per_task: int = option(
        "Number of parts that one array task writes, for a cluster that limits the size of arrays.",
        default=1,
        minimum=1,
    )
    max_parallel: int | None = option(
        "Maximum number of array tasks that run at the same time.", default=None, minimum=1
    )


@dataclass(frozen=True, kw_only=True)
class RankResources(Resources):
    """Resources of `spo train`, which may run as several processes."""

    nodes: int = option("Number of nodes.", default=1, minimum=1)
    ranks: int = option("Total number of processes on all nodes, usually one per GPU; srun starts them.", default=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ranks < self.nodes or self.ranks % self.nodes:
            raise UserError(
                f"every node must run the same number of ranks: ranks must be a multiple of nodes ({self.nodes}); "
                f"got {self.ranks}"
            )
