"""Choose the device, the number format and the CPU threads that a model computes with."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

from stages.core.errors import UserError, first_line


def pick_device(device: str) -> torch.device:
    """Return the device that `--device` names; `auto` is the first CUDA device, or the CPU if there is none.

    Raises:
      UserError: this machine has no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"--device {device}: {first_line(error)}") from error
    if picked.type == "cuda" and (picked.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {device}: this machine has {torch.cuda.device_count()} CUDA devices; use cpu or auto"
        )
    return picked


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the type that `--dtype` names; `auto` is bfloat16 on a CUDA device that computes in it, else float32.

    Raises:
      UserError: not the name of a floating-point type.
    """
    if dtype == "auto":
        bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if bfloat16 else torch.float32
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in names:
        raise UserError(f"--dtype must be one of auto, {', '.join(names)}; got {dtype!r}")
    return names[dtype]


def count_gpus(device: torch.device, processes: int = 1) -> int:
    """Return how many GPUs a number of processes use, each of which computes on such a device."""
    return 0 if device.type == "cpu" else processes


def use_threads(threads: int | None, quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> str | None:
    """Let torch compute with a number of CPU threads; return a line if they are likely to slow each other down.

    Args:
      threads: None is torch's own number, but at most the processors that a container may use, which torch does not
        know: more threads would wait for each other.
      quota: file of the container's quota (control groups, version 2).
    """
    count = threads or min(torch.get_num_threads(), _processors(quota))
    if count != torch.get_num_threads():
        torch.set_num_threads(count)
    processors, load = os.cpu_count() or 1, os.getloadavg()[0]
    passive = os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"
    if count == 1 or passive or load <= processors:
        return None
    return (
        f"this machine is busy (load {load:.1f} on {processors} processors): the {count} threads of a product spin "
        "while they wait for each other; --threads 1, or OMP_WAIT_POLICY=PASSIVE in the environment, is faster"
    )


def _processors(quota: Path) -> int:
    """Return the number of processors that the quota of a container amounts to, rounded up."""
    try:
        limit, period = quota.read_text().split()
        return max(1, math.ceil(int(limit) / int(period)))
    except (OSError, ValueError):  # no control groups, or no limit ("max")
        return os.cpu_count() or 1
