"""Owns on what a training call runs: one process with the torch engine, or DeepSpeed's ranks."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from stages.configs.train import LearningOptions, choose_engine
from stages.core.errors import UserError
from stages.core.launcher import Launch
from stages.models import checkpoints
from stages.optimization.ranks import ALONE, Ranks, join
from stages.optimization.zero import Zero, plan_zero, require_deepspeed


@dataclass(frozen=True)
class Sharing:
    """How the work of a call is shared out.

    Attributes:
      device: this rank's.
      ranks: this process among the others.
      zero: how DeepSpeed shares the model out; None: the torch engine, in one process.
    """

    device: torch.device
    ranks: Ranks = field(default_factory=lambda: ALONE)
    zero: Zero | None = None

    def __str__(self) -> str:
        """For the reader: which engine, on how many ranks."""
        if self.zero is None:
            return "engine: torch"
        count = f"{self.ranks.size} rank{'s' * (self.ranks.size > 1)}"
        return f"engine: deepspeed, ZeRO stage {self.zero.stage}, {count} on {self.device.type}"


def plan_sharing(options: LearningOptions, device: str, dtype: str, launch: Launch) -> Sharing:
    """What the options mean for a process that was launched so.

    Args:
      device, dtype: as `--device` and `--dtype` say.

    Raises:
      UserError: as `choose_engine` and `plan_zero`; a device that does not go with the launch.
    """
    if choose_engine(options, launch.size) == "torch":
        return Sharing(checkpoints.pick_device(device))
    place = _device_of_rank(device, launch)
    ranks = join(launch, place.type)
    with ranks.agreed():
        require_deepspeed()
        zero = ranks.first(
            lambda: plan_zero(
                options.deepspeed_config,
                stage=options.zero_stage,
                offload_optimiser=options.offload_optimizer,
                offload_parameters=options.offload_parameters,
                dtype=dtype,
            )
        )
    return Sharing(place, ranks, zero)


def _device_of_rank(device: str, launch: Launch) -> torch.device:
    """A rank's own GPU: its number on the node, or the only one that it sees."""

    place = checkpoints.pick_device(device)
    if place.type != "cuda":
        return place
    if place.index is not None and launch.size > 1:
        raise UserError(f"--device {device}: each of {launch.size} ranks has its own; expected auto, cuda or cpu")
    count = torch.cuda.device_count()
    if launch.local_rank >= count > 1:
        raise UserError(f"rank {launch.rank} is the process {launch.local_rank} of its node, which has {count} GPUs")
    return torch.device("cuda", place.index or (launch.local_rank if count > 1 else 0))
