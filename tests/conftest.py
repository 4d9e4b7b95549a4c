"""Fixtures of all tests; the same environment and property-test examples on every machine."""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from stages.shards import sharding
from tests.environment import fix_environment

if TYPE_CHECKING:
    from tests.command_server import Commands

fix_environment()

# Property tests check results, not speed, so they have no deadline: a busy machine must not fail them. The examples are
# the same on every machine; `--hypothesis-profile=default` draws new ones.
settings.register_profile(
    "everywhere", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("everywhere")

# A shell starts background jobs with SIGINT ignored, and child processes inherit that; the commands under test need it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real data and golden numbers beside the checkout; skip the test where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the data and golden numbers in {SHARED}, which is not part of the project")
    return SHARED


@pytest.fixture(autouse=True)
def forget_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget signals that earlier tests sent to this process, so that a new one is not taken for a repetition."""
    monkeypatch.setattr(sharding, "_interrupted_at", -math.inf)


@pytest.fixture(autouse=True)
def forget_checks() -> None:
    """Let engines check models that an earlier test opened in this process: tests break engines on purpose."""
    if agreement := sys.modules.get("stages.models.agreement"):  # it imports torch, which many tests do without
        agreement.forget_checks()


@pytest.fixture(scope="module")
def spo() -> Iterator[Commands]:
    """Return a process that runs commands of `spo`, so that each need not import torch again."""
    from tests.command_server import Commands

    with Commands() as commands:
        yield commands


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a tiny model that is sometimes correct on arithmetic with one operation."""
    from tests.chains import train_small_policy  # imports torch, which many tests do without

    return train_small_policy(tmp_path_factory.mktemp("policy") / "policy")


@pytest.fixture(scope="session")
def chain(policy: Path) -> Path:
    """Return a directory with `trajectories` (12 questions, 4 responses each), their `cutpoints` and `advantages`."""
    from tests.chains import cut, sample, value

    here = policy.parent
    sample(here / "trajectories", policy, num_questions=12, num_generations=4, temperature=0.8)
    cut(here / "cutpoints", here / "trajectories", interval=2)
    value(here / "advantages", here / "cutpoints")
    return here
