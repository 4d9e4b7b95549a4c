"""Test the one writer of files: a failure at any of its steps leaves the old file and nothing else."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from stages.core import storage


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_at_any_step_leaves_the_old_content_and_no_other_file(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    storage.write_atomically(tmp_path / "state.json", b"old")
    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        storage.write_atomically(tmp_path / "state.json", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
    assert (tmp_path / "state.json").read_bytes() == b"old"


def test_the_content_is_complete_before_the_name_appears(tmp_path: Path):
    with storage.replacing(tmp_path / "state.json") as file:
        file.write(b"first half")
        assert not (tmp_path / "state.json").exists()
        file.write(b", second half")
    assert (tmp_path / "state.json").read_bytes() == b"first half, second half"
