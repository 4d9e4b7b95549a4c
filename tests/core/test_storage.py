"""The one writer of files leaves the old file or the new one whatever fails; digests follow every rewrite."""

from __future__ import annotations

import errno
import os
import time
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


def freeze_status(monkeypatch: pytest.MonkeyPatch, path: Path, age: float) -> None:
    """Show a file as a file system with a coarse clock does: no rewrite changes its times, `age` seconds ago."""
    values, time_ns = tuple(path.stat()), time.time_ns() - int(age * 1e9)
    status = os.stat_result(values, {"st_mtime_ns": time_ns, "st_ctime_ns": time_ns})
    monkeypatch.setattr(Path, "stat", lambda *_, **__: status)


def test_the_digest_follows_a_rewrite_within_one_tick_of_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "file"
    file.write_bytes(b"first")
    freeze_status(monkeypatch, file, age=1)
    for content in (b"first", b"other"):
        file.write_bytes(content)
        assert storage.file_digest(file) == storage.digest(content)


def test_a_file_that_stays_the_same_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "file"
    file.write_bytes(b"first")
    freeze_status(monkeypatch, file, age=60)
    expected = storage.file_digest(file)
    monkeypatch.setattr(storage, "_read_digest", None)  # a second read would call it
    assert storage.file_digest(file) == expected == storage.digest(b"first")


def test_the_digest_follows_a_file_that_takes_the_place_of_another_with_its_times(tmp_path: Path):
    """As `cp --preserve` and `rsync --times` leave it: the modification time is old, the change time is not."""
    file, other = tmp_path / "file", tmp_path / "other"
    for path, content in ((file, b"first"), (other, b"other")):
        path.write_bytes(content)
        os.utime(path, (1e9, 1e9))
    assert storage.file_digest(file) == storage.digest(b"first")
    other.replace(file)
    assert storage.file_digest(file) == storage.digest(b"other")
