"""Give the tests a pretrained model, SmolLM2-135M-Instruct, which `make real-model` fetches, and a chain of stages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.sampling.pool import SamplerPool
from tests.chains import cut, sample

DIRECTORY = Path(__file__).resolve().parents[2] / "build/real-model/SmolLM2-135M-Instruct"
TASK: dict[str, Any] = {
    "task": "custom",
    "data": str(Path(__file__).parent),
    "task_arg": ("reward=tests.real_model.rewards:names_the_answer",),
    "chat_template": True,
}
"""Four questions of one sentence, as in GSM8K but easier, whose answers this model sometimes finds."""
MAX_TOKENS = 20


@pytest.fixture(scope="session")
def model() -> Path:
    """Return the directory of the model; skip where it is absent."""
    if not DIRECTORY.is_dir():
        pytest.skip(f"needs the model in {DIRECTORY}: make real-model")
    torch.set_num_threads(1)
    return DIRECTORY


@pytest.fixture(scope="session")
def pool() -> Iterator[SamplerPool]:
    """Return a pool that opens the model once for all stages that sample from it."""
    with SamplerPool() as opened:
        yield opened


@pytest.fixture(scope="session")
def chain(model: Path, pool: SamplerPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with `trajectories` (4 questions, 4 responses each) and their `cutpoints`."""
    here = tmp_path_factory.mktemp("real")
    options: dict[str, Any] = {"num_generations": 4, "temperature": 0.7, "max_tokens": MAX_TOKENS, "pool": pool}
    sample(here / "trajectories", model, **TASK | options)
    cut(here / "cutpoints", here / "trajectories", interval=4)
    return here
