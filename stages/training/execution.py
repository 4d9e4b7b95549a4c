"""Choose what a training call runs on: one process with the torch engine, or the ranks of DeepSpeed."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from stages.configs.train import LearningOptions, resolve_training_engine
from stages.core.errors import UserError
from stages.core.launcher import Launch
from stages.models import devices
from stages.optimization.ranks import ALONE, Ranks, join
from stages.optimization.zero import DeepSpeedSettings, plan_deepspeed, require_deepspeed


@dataclass(frozen=True)
class ExecutionPlan:
    """The device, ranks and engine of a training call.

    Attributes:
      device: the device of this rank.
      ranks: the ranks of the call, and which of them this process is.
      zero: settings of DeepSpeed; None for the torch engine, which is one process.
    """

    device: torch.device
    ranks: Ranks = field(default_factory=lambda: ALONE)
    zero: DeepSpeedSettings | None = None

    def __str__(self) -> str:
        """Describe the engine and the number of ranks to the user."""
        if self.zero is None:
            return "engine: torch"
        count = f"{self.ranks.size} rank{'s' * (self.ranks.size > 1)}"
        return f"engine: deepspeed, ZeRO stage {self.zero.stage}, {count} on {self.device.type}"


def plan_execution(options: LearningOptions, device: str, dtype: str, launch: Launch) -> ExecutionPlan:
    """Choose the engine and the device of this rank, and connect the ranks.

    Args:
      device, dtype: the values of `--device` and `--dtype`.
      launch: how the launcher (torchrun, deepspeed, srun or none) started this process.

    Raises:
      UserError: as `resolve_training_engine` and `plan_deepspeed`; or a device that does not fit the launch.
    """
    if resolve_training_engine(options, launch.size) == "torch":
        return ExecutionPlan(devices.pick_device(device))
    own_device = _device_of_rank(device, launch)
    ranks = join(launch, own_device.type)
    with ranks.propagate_errors():
        # Rank 0 alone reads --deepspeed-config, so that all ranks use the same settings.
        zero = ranks.broadcast_from_main(lambda: _plan_zero(options, dtype))
    return ExecutionPlan(own_device, ranks, zero)


def plan_remote_execution(options: LearningOptions, dtype: str, ranks: int) -> ExecutionPlan:
    """Describe a call on ranks in other processes: what its lineage depends on.

    Raises:
      UserError: as `resolve_training_engine` and `plan_deepspeed`.
    """
    deepspeed = resolve_training_engine(options, ranks) == "deepspeed"
    return ExecutionPlan(torch.device("cpu"), ALONE, _plan_zero(options, dtype) if deepspeed else None)


def _plan_zero(options: LearningOptions, dtype: str) -> DeepSpeedSettings:
    require_deepspeed()
    return plan_deepspeed(
        options.deepspeed_config,
        stage=options.zero_stage,
        offload_optimizer=options.offload_optimizer,
        offload_parameters=options.offload_parameters,
        dtype=dtype,
    )


def _device_of_rank(device: str, launch: Launch) -> torch.device:
    """Return the GPU of a rank: the one with its local rank as index, or the only visible one; else the given device.

    Raises:
      UserError: one GPU is named for several ranks, or the node has fewer GPUs than ranks.
    """
    picked = devices.pick_device(device)
    if picked.type != "cuda":
        return picked
    if picked.index is not None and launch.size > 1:
        raise UserError(
            f"--device {device} is one GPU for all of {launch.size} ranks; expected auto, cuda or cpu, so that each "
            "rank takes its own"
        )
    count = torch.cuda.device_count()
    # A launcher may show each rank its own GPU only; then every rank sees one GPU, with index 0.
    if launch.local_rank >= count > 1:
        raise UserError(
            f"rank {launch.rank} has local rank {launch.local_rank}, but its node has {count} GPUs: start at most "
            f"{count} ranks per node"
        )
    return torch.device("cuda", picked.index or (launch.local_rank if count > 1 else 0))
