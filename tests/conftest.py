"""What every test may ask for: one CPU thread, and the project's shared data where it lies beside a checkout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models are fastest so; children inherit it
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches out
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and golden numbers beside the checkout; users do not have it."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the data and golden numbers in {SHARED}, which is not part of the project")
    return SHARED
