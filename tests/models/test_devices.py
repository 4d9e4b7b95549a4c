"""Choose devices and number formats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give torch four threads; afterwards those that it had."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("quota", "given", "expected"),
    [("150000 100000", None, 2), ("max 100000", 3, 3), ("50000 100000", None, 1), ("150000 100000", 3, 3)],
)
def test_threads_are_at_most_the_quota_of_the_container(
    quota: str, given: int | None, expected: int, tmp_path: Path, threads: None
):
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    devices.use_threads(given, tmp_path / "cpu.max")
    assert torch.get_num_threads() == expected


def test_a_busy_machine_is_reported_for_threads_that_spin(threads: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr("os.getloadavg", lambda: (9.3, 0.0, 0.0))
    assert "busy (load 9.3 on 4 processors): the 2 threads" in str(devices.use_threads(2))
    assert devices.use_threads(1) is None
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert devices.use_threads(2) is None
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr("os.getloadavg", lambda: (3.9, 0.0, 0.0))
    assert devices.use_threads(2) is None
