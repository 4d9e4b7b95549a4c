"""Fixtures: fake commands with every kind of option and every kind of failure, and a small run to inspect."""

import shutil
import sys
from pathlib import Path

import pytest

from spo_cli import app
from tests.spo_cli.artefacts import make_run

VERB = """
import errno
import os
import signal
import time
from dataclasses import dataclass
from typing import Literal

from stages.core.config import option, validate
from stages.core.errors import IncompleteInput, UserError
from stages.core.paths import AnyPath
from stages.core.progress import Summary


@dataclass(frozen=True, kw_only=True)
class Shared:
    threads: int | None = option("CPU threads.", default=None, minimum=1)


@dataclass(frozen=True, kw_only=True)
class Config(Shared):
    source: AnyPath = option("Where from [see below].", argument=True)
    out: AnyPath = option("Where to.", short="--output-dir")
    model: str = option("Model, e.g. [cpu].", default="tiny", short="-m")
    partition: Literal["cutpoints", "fixed"] = option("How to cut.", default="cutpoints")
    rho: float = option("Threshold.", default=0.9, above=0, maximum=1)
    whiten: bool = option("Whiten.", default=True)
    stop: tuple[str, ...] = option("Stop string.", default=("$",))

    def __post_init__(self):
        validate(self)


def run(config, progress):
    if config.model == "missing-part":
        raise IncompleteInput("part 3 of 8 is missing in runs/x; run spo rollout --shard 3/8")
    if config.model == "defect":
        raise ZeroDivisionError("boom")
    if config.model == "full":
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x/part")
    if config.model == "absent":
        raise FileNotFoundError(errno.ENOENT, "No such file", "x")
    if config.model.startswith("SIG"):
        os.kill(os.getpid(), signal.Signals[config.model])
        time.sleep(60)
    progress.start("rollout", 4, "rows")
    progress.advance(4, tokens=100, reward=0.5)
    progress.note(repr(config))
    return Summary("rollout", str(config.out), rows=4, seconds=2.0, tokens_sampled=100, tokens_prefilled=12345,
                   reward=0.5, figures={"kl": 0.00123456}, notes=("no lineage",))
"""

RECIPE_VERB = """
from dataclasses import dataclass

from stages.core.config import option
from stages.core.errors import UserError
from stages.core.paths import AnyPath


@dataclass(frozen=True, kw_only=True)
class Config:
    recipe: AnyPath = option("Recipe file.", argument=True)
    iterations: int | None = option("How many.", default=None)
    overrides: tuple[str, ...] = option("table.key=value.", default=(), short="--set")


def run(config, progress):
    progress.note(repr(config))
    if any(override.startswith("nonsense.") for override in config.overrides):
        raise UserError("the recipe has no table nonsense")
"""


@pytest.fixture
def verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace `spo rollout` and `spo run` by the fake commands above, and return the directory of their modules."""
    folder = tmp_path / "verbs"
    folder.mkdir()
    (folder / "pretend_rollout.py").write_text(VERB)
    (folder / "pretend_run.py").write_text(RECIPE_VERB)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(app.VERBS, "rollout", app.Verb("pretend_rollout", "pretend_rollout", "Pretend."))
    monkeypatch.setitem(app.VERBS, "run", app.Verb("pretend_run", "pretend_run", "Pretend."))
    for name in ("pretend_rollout", "pretend_run"):
        sys.modules.pop(name, None)
    return folder


@pytest.fixture(scope="session")
def _run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("made"))


@pytest.fixture
def run_directory(_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of a small run with one iteration, relative to the working directory."""
    shutil.copytree(_run, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("COLUMNS", "120")
    return Path("runs/demo")
