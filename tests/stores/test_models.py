"""Copies on this machine of models in a store are told apart, whatever the store says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.core.errors import UserError
from stages.core.paths import StorePath
from stages.models import transfer
from tests.stores.bucket import Bucket

pytestmark = pytest.mark.xdist_group("stores")


def test_models_of_one_size_and_second_are_two(bucket: Bucket):
    names = ("one", "other")
    while True:  # until all are of one second, in which a store tells times
        for name in names:
            bucket.put(f"{name}/model.safetensors", name.ljust(8).encode())
            bucket.put(f"{name}/config.json", b"{}")
        times = bucket.client.list_objects_v2(Bucket=bucket.name)["Contents"]
        if len({one["LastModified"].replace(microsecond=0) for one in times}) == 1:
            break
    for name in names:
        place = bucket.path(name)
        assert isinstance(place, StorePath)
        copy = transfer.fetch(place)
        assert (copy / "model.safetensors").read_bytes() == name.ljust(8).encode()
        assert transfer.origin(copy) == place


def test_a_cache_that_cannot_be_written_is_told(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPO_CACHE", str(tmp_path / "file"))
    bucket.put("config.json", b"{}")
    place = bucket.path()
    assert isinstance(place, StorePath)
    with pytest.raises(UserError, match=r"cannot keep a copy of a model in .*: Not a directory; set SPO_CACHE to"):
        transfer.fetch(place)
