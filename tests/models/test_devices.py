"""Choose devices and number formats."""

from __future__ import annotations

import pytest
import torch

from stages.core.errors import UserError
from stages.models import devices

CPU = torch.device("cpu")


def test_devices_and_number_formats_are_picked_or_rejected():
    assert devices.pick_device("cpu") == CPU
    assert devices.pick_dtype("auto", CPU) == torch.float32
    assert devices.pick_dtype("bfloat16", CPU) == torch.bfloat16
    with pytest.raises(UserError, match="--device warp"):
        devices.pick_device("warp")
    with pytest.raises(UserError, match="CUDA devices; use cpu or auto"):
        devices.pick_device(f"cuda:{torch.cuda.device_count()}")
    with pytest.raises(UserError, match="--dtype must be one of auto, float32"):
        devices.pick_dtype("int8", CPU)
