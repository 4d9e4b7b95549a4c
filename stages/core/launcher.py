"""Read the rank, the number of ranks and the address of rank 0 from the environment of a launcher.

torchrun and deepspeed set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. srun sets SLURM_PROCID,
SLURM_STEP_NUM_TASKS, SLURM_LOCALID and SLURM_STEP_NODELIST, from which address and port are derived.

This module is imported for `--help`, so it must import nothing heavy.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stages.core.errors import UserError


@dataclass(frozen=True)
class Launch:
    """Describe this process among the processes of one launch.

    Attributes:
      rank: number of this process, from 0.
      size: number of processes.
      local_rank: number of this process on its node, from 0.
      address, port: where rank 0 listens; "" and 0 for a single process.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = ""
    port: int = 0


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """Return the launch that the environment describes; a single process if there is no launcher.

    A process that sbatch starts directly is a single process even if the job has several tasks. Therefore the variables
    of the job step (SLURM_STEP_*), which only srun sets, are read, and not SLURM_NTASKS.

    Raises:
      UserError: the variables are incomplete or contradict each other.
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
        found = " ".join(f"{name}={environment.get(name, '')}" for name in names)
        raise UserError(f"cannot derive rank, size, address and port from the variables of the launcher; found {found}")
    return Launch(int(rank), int(size), int(local), address, int(port))


def require_single_process(command: str) -> None:
    """Raise unless this is the only process of its launch.

    Raises:
      UserError: a launcher has started several processes.
    """
    if (launch := read_launch()).size > 1:
        raise UserError(
            f"{command} runs as one process, but a launcher started {launch.size};"
            " start it without the launcher (only spo train supports several ranks)"
        )


def drop_local_rank(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the arguments without the `--local_rank=N` that the deepspeed launcher inserts."""
    return [word for word in arguments if "LOCAL_RANK" not in environment or not word.startswith("--local_rank=")]


def _first_node(nodes: str) -> str:
    """Return the first node of a SLURM node list: `gpu[03-05,9],cpu1` → `gpu03`; a name may have several brackets."""
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", nodes).split(",")[0]


def _port(job: str, step: str) -> str:
    """Return a port from 15000 to 29999 for a SLURM step; "" if the ids are not numbers.

    Steps on the same node are unlikely to share a port, and the range lies below the ephemeral ports of the system
    (32768 and up on Linux).
    """
    return str(15000 + (int(job) * 7 + int(step)) % 15000) if job.isdigit() and step.isdigit() else ""
