"""One Ray for the tests of this folder, prepared before any test module imports it; without Ray, none is collected."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from stages.cluster.environment import open_session, prepare_environment
from stages.configs.execution import Cluster
from stages.core.progress import Silent

if TYPE_CHECKING:
    from stages.cluster.session import Session

if find_spec("ray"):
    prepare_environment(Cluster())
else:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """Return a Ray of this machine with places for four samplers and two trainers."""
    logs = tmp_path_factory.mktemp("workers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHDYNAMO_DISABLE", "1")  # compilation takes longer than any test
        patch.setenv("DS_ACCELERATOR", "cpu")
        with open_session(Cluster(samplers=4, trainers=2), logs, Silent()) as opened:
            opened.begin()
            yield opened
