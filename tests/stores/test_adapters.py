"""Train, merge and resolve an adapter in an object store whose base is in the same store."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.models import adapters, checkpoints, loading, transfer
from stages.train import Config, run
from tests.chains import cut, sample, value
from tests.stores.bucket import Bucket

pytestmark = pytest.mark.xdist_group("stores")


def test_an_adapter_in_a_store_names_its_base_there(endpoint: str, policy: Path, tmp_path: Path):
    bucket = Bucket.make("spo-adapters")
    start, out = bucket.path("start"), bucket.path("000/checkpoint")
    transfer.publish(Path(shutil.copytree(policy, tmp_path / "travelling")), start)
    sample(tmp_path / "trajectories", start, temperature=0.8)
    cut(tmp_path / "cutpoints", tmp_path / "trajectories", interval=2)
    value(tmp_path / "advantages", tmp_path / "cutpoints")
    given: dict[str, Any] = {"advantages": (tmp_path / "advantages",), "learning_rate": 1e-2, "threads": 1}
    run(Config(out=out, lora_r=2, merge=True, **given))
    assert run(Config(out=out, lora_r=2, merge=True, **given)).up_to_date
    adapter, merged = (checkpoints.resolve(str(place)) for place in (out, out / "merged"))
    assert adapters.bases(adapter)[-1] == (str(start), None)
    assert checkpoints.base_of(adapter) == checkpoints.resolve(str(start))
    ours, theirs = (loading.load_model(place, torch.device("cpu"), torch.float32) for place in (adapter, merged))
    assert all(torch.equal(one, theirs.state_dict()[name]) for name, one in ours.state_dict().items())
