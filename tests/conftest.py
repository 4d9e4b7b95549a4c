"""What every test may ask for; the same environment and property examples on every machine."""

from __future__ import annotations

import math
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from stages.shards import sharding
from tests.environment import fix_environment

fix_environment()

# Property tests judge results, not speed: a busy machine must not fail them. The examples are the same on every
# machine; `--hypothesis-profile=default` draws new ones.
settings.register_profile(
    "everywhere", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("everywhere")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a job in the background; the commands under test are not
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and golden numbers beside the checkout; users do not have it."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the data and golden numbers in {SHARED}, which is not part of the project")
    return SHARED


@pytest.fixture(autouse=True)
def no_earlier_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal is no echo of one that an earlier test sent to this process."""
    monkeypatch.setattr(sharding, "_interrupted_at", -math.inf)


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model directory that is right now and then on arithmetic of one operation."""
    from tests.chains import learn_a_little

    return learn_a_little(tmp_path_factory.mktemp("policy") / "policy")


@pytest.fixture(scope="session")
def chain(policy: Path) -> Path:
    """A directory with `trajectories` (12 questions, 4 responses each), their `cutpoints` and `advantages`."""
    from tests.chains import cut, sample, value

    here = policy.parent
    sample(here / "trajectories", policy, num_questions=12, num_generations=4, temperature=0.8)
    cut(here / "cutpoints", here / "trajectories", interval=2)
    value(here / "advantages", here / "cutpoints")
    return here
