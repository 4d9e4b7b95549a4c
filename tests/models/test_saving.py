"""Model directories are written completely or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.core.errors import UserError
from stages.models import checkpoints, saving
from stages.models.presets import make_model


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    saving.save_directory(tmp_path / "model", *make_model("tiny", 0))
    return tmp_path / "model"


def test_saving_again_replaces_the_whole_directory(directory: Path):
    (directory / "stale.txt").write_text("of the older model")
    saving.save_directory(directory, *make_model("tiny", 1), lambda unfinished: (unfinished / "more.txt").touch())
    assert (directory / "more.txt").exists()
    assert not (directory / "stale.txt").exists()
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]


def test_a_failed_save_leaves_the_older_model_and_no_partial_output(directory: Path):
    before = checkpoints.digest(directory)

    def fill_the_disk(unfinished: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left on device"):
        saving.save_directory(directory, *make_model("tiny", 1), fill_the_disk)
    assert checkpoints.digest(directory) == before
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]
