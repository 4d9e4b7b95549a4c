"""Local copies of models in an object store: different models have different copies."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.core.errors import UserError
from stages.models import transfer
from tests.stores.bucket import Bucket

pytestmark = pytest.mark.xdist_group("stores")


def test_models_of_equal_size_and_time_have_separate_copies(bucket: Bucket):
    names = ("one", "other")
    while True:  # until all files have the same second, the resolution of times in a store
        for name in names:
            bucket.put(f"{name}/model.safetensors", name.ljust(8).encode())
            bucket.put(f"{name}/config.json", b"{}")
        times = bucket.client.list_objects_v2(Bucket=bucket.name)["Contents"]
        if len({entry["LastModified"].replace(microsecond=0) for entry in times}) == 1:
            break
    for name in names:
        address = bucket.path(name)
        copy = transfer.fetch(address)
        assert (copy / "model.safetensors").read_bytes() == name.ljust(8).encode()
        assert transfer.origin(copy) == address


def test_an_unwritable_cache_is_an_error(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPO_CACHE", str(tmp_path / "file"))
    bucket.put("config.json", b"{}")
    address = bucket.path()
    with pytest.raises(UserError, match=r"cannot keep a copy of a model in .*: Not a directory; set SPO_CACHE to"):
        transfer.fetch(address)
