"""Owns what a launcher's environment says: which rank this process is, of how many, and where they meet.

torchrun and deepspeed set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; srun sets SLURM_PROCID,
SLURM_STEP_NUM_TASKS, SLURM_LOCALID and SLURM_STEP_NODELIST, from which the meeting place follows. Nothing heavy.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stages.core.errors import UserError


@dataclass(frozen=True)
class Launch:
    """This process among those that were started together.

    Attributes:
      rank: from 0. size: how many there are. local_rank: its number on its node.
      address, port: where rank 0 listens; "" and 0 for a process on its own.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = ""
    port: int = 0


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """The launch as the environment has it; without a launcher, one process on its own.

    The batch script of a SLURM job is no task of a step, whatever its number of tasks: only what srun starts is.

    Raises:
      UserError: variables that do not make sense together.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        rank, size, local, address, port = (environment.get(name, "") for name in names)
    elif environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID")
        rank, size, local, address, port = (environment.get(name, "") for name in names)
        address = environment.get("MASTER_ADDR", _first_node(address))
        port = environment.get("MASTER_PORT", _port(port, environment.get("SLURM_STEP_ID", "0")))
    else:
        return Launch()
    if size == "1":
        return Launch()
    if not (address and all(number.isdigit() for number in (rank, size, local, port)) and int(rank) < int(size)):
        told = " ".join(f"{name}={environment.get(name, '')}" for name in names)
        raise UserError(f"cannot tell from the launcher's variables which rank this is: {told}")
    return Launch(int(rank), int(size), int(local), address, int(port))


def require_single_process(command: str) -> None:
    """Refuse several ranks of a command that is one process.

    Raises:
      UserError: a launcher has started several.
    """
    if (launch := read_launch()).size > 1:
        raise UserError(f"{command} is one process, but a launcher has started {launch.size}: only spo train has ranks")


def drop_local_rank(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> list[str]:
    """The arguments without the `--local_rank=N` that the deepspeed launcher puts before them."""
    return [word for word in arguments if "LOCAL_RANK" not in environment or not word.startswith("--local_rank=")]


def _first_node(nodes: str) -> str:
    """`gpu[03-05,9],cpu1` → `gpu03`; a name may have several brackets."""
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", nodes).split(",")[0]


def _port(job: str, step: str) -> str:
    """One that steps on the same node are unlikely to share, below the range that systems hand out themselves."""
    return str(15000 + (int(job) * 7 + int(step)) % 15000) if job.isdigit() and step.isdigit() else ""
