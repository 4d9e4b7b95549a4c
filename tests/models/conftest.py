"""Fixtures of the tests of model directories."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stages.models import saving
from stages.models.presets import make_model


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a tiny model; a module may have an `original` of its own."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    saving.save_directory(directory, *make_model("tiny", 0))
    return directory


@pytest.fixture
def directory(original: Path, tmp_path: Path) -> Path:
    """Return a copy of `original` that a test may damage."""
    return Path(shutil.copytree(original, tmp_path / "model"))
