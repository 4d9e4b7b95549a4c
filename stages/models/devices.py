"""Choose the device and the number format that a model computes with."""

from __future__ import annotations

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
