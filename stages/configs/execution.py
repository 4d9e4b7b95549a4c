"""Define where models run: in the process of the command, or on workers that Ray starts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from stages.core.config import option, validate
from stages.core.errors import UserError

Executor = Literal["local", "ray"]
_ADDRESS_HELP = "Address of a running Ray, as HOST:PORT or auto."
_ADDRESS_DEFAULT = "a local Ray cluster that starts and ends with the command"
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True, kw_only=True)
class ExecutorOptions:
    """Where a command runs its models. It changes speed, never results."""

    GROUP = "Executor"

    executor: Executor = option(
        "Run models in the process of the command (local), or on workers that Ray starts (ray).",
        default="local",
        result=False,
    )
    num_workers: int | None = option(
        "With --executor ray: number of workers, each with a model of its own; for spo train, number of ranks.",
        default=None,
        default_text="one per GPU, or 1 on a CPU",
        minimum=1,
        result=False,
    )
    address: str | None = option(
        f"With --executor ray: {_ADDRESS_HELP[0].lower()}{_ADDRESS_HELP[1:]}",
        default=None,
        default_text=_ADDRESS_DEFAULT,
        result=False,
    )

    def cluster(self) -> Cluster | None:
        """Return the cluster that these options describe; None for the process of the command.

        Raises:
          UserError: an option of Ray without --executor ray.
        """
        if self.executor == "local":
            given = {"--num-workers": self.num_workers, "--address": self.address}
            for flag in (flag for flag, value in given.items() if value is not None):
                raise UserError(f"{flag} is an option of --executor ray: pass both, or omit it")
            return None
        return Cluster(address=self.address, samplers=self.num_workers, trainers=self.num_workers)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The options of the table [ray] of a recipe: the workers of a run and their resources."""

    address: str | None = option(_ADDRESS_HELP, default=None, default_text=_ADDRESS_DEFAULT)
    samplers: int | None = option(
        "Number of sampling workers, each with a model of its own.",
        default=None,
        default_text="as many as the GPUs allow, or 1 on a CPU",
        minimum=1,
    )
    gpus_per_sampler: int | None = option(
        "GPUs of a sampling worker, which share each layer of its model.",
        default=None,
        default_text="tensor_parallel_size where there are GPUs",
        minimum=0,
    )
    trainers: int | None = option(
        "Number of ranks of spo train.",
        default=None,
        default_text="1, in the process of the command; with an address, in a worker",
        minimum=1,
    )
    gpus_per_trainer: int | None = option(
        "GPUs of a training rank.", default=None, default_text="1 where there are GPUs", minimum=0, maximum=1
    )
    share_gpus: bool = option(
        "Samplers and trainers use the same GPUs in turn; otherwise each has its own.", default=True
    )
    cpus: int = option("CPUs of a worker.", default=1, minimum=1)
    memory: str | None = option("Memory that Ray reserves for a worker, such as 64G.", default=None)

    def __post_init__(self) -> None:
        validate(self)
        _ = self.memory_bytes

    @property
    def trains_in_workers(self) -> bool:
        """Whether the training of a run has processes of its own."""
        return self.address is not None or (self.trainers or 1) > 1

    @property
    def memory_bytes(self) -> int | None:
        """Memory of a worker, in bytes.

        Raises:
          UserError: text of another form.
        """
        if self.memory is None:
            return None
        match = re.fullmatch(r"(\d+)([KMGT]?)B?", self.memory.strip(), re.IGNORECASE)
        if not match:
            raise UserError(f"memory must be a number of bytes with K, M, G or T, such as 64G; got {self.memory!r}")
        return int(match[1]) * _UNITS.get(match[2].upper(), 1)
