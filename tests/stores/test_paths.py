"""A path of a store behaves as a path, says in one line what is wrong, and its objects appear whole."""

from __future__ import annotations

import copy
import os
import pickle
import threading
from pathlib import Path

import pytest

from stages.core.errors import UserError
from stages.core.paths import StorePath, as_path, download, locate, relative_path, upload
from tests.stores.bucket import Bucket


def test_addresses_of_stores_are_told_from_local_paths():
    path = as_path("s3://bucket/runs/000/advantages")
    assert isinstance(path, StorePath)
    assert str(path) == "s3://bucket/runs/000/advantages"
    assert str(path / "part-0.parquet") == "s3://bucket/runs/000/advantages/part-0.parquet"
    assert str(path.parent) == "s3://bucket/runs/000"
    assert str((path / "../cutpoints").resolve()) == "s3://bucket/runs/000/cutpoints"
    assert path.with_name(".advantages").name == ".advantages"
    assert str(as_path("gs://bucket/x")) == "gs://bucket/x"
    assert type(as_path("runs/x")) is type(Path("runs/x"))
    assert as_path(path) is path
    assert pickle.loads(pickle.dumps(path)) == path == copy.deepcopy(path)


@pytest.mark.parametrize("wrong", ["http://host/x", "s3://", "s3:///x", "hdfs://host/x", "s3:/host/x"])
def test_another_address_is_refused(wrong: str):
    with pytest.raises(UserError, match=r"expected a local path, s3://BUCKET/KEY or gs://BUCKET/KEY; got"):
        as_path(wrong)


def test_what_a_store_does_not_answer_to_fails_rather_than_go_to_the_disk():
    path = as_path("s3://bucket/x")
    for act in (lambda: os.fspath(path), lambda: os.listdir(path), lambda: path.rename("y"), lambda: path.touch()):
        with pytest.raises(TypeError, match="has no name on this machine"):
            act()


@pytest.mark.parametrize(
    ("path", "directory", "told"),
    [
        ("s3://bucket/run/000/cutpoints", "s3://bucket/run/000/advantages", "../cutpoints"),
        ("s3://bucket/run/x", "s3://other/run/y", "s3://bucket/run/x"),
        ("s3://bucket/run/x", "/data/y", "s3://bucket/run/x"),
        ("/data/x", "s3://bucket/run/y", "/data/x"),
        ("/data/x", "/data/run/y", "../../x"),
    ],
)
def test_lineage_leads_back_within_and_between_stores_and_disks(path: str, directory: str, told: str):
    assert relative_path(as_path(path), as_path(directory)) == told
    assert str(locate(told, as_path(directory))) == path


def test_what_is_put_there_is_there(bucket: Bucket, tmp_path: Path):
    here = bucket.path("run/advantages")
    assert not here.exists()
    assert list(here.iterdir()) == []
    (here / "part-0.parquet").write_bytes(b"rows")
    (here / ".part-1/chunk-0.parquet").write_bytes(b"more")
    assert here.is_dir()
    assert (here / "part-0.parquet").is_file()
    assert (here / "part-0.parquet").stat().st_size == 4
    assert [path.name for path in here.iterdir()] == [".part-1", "part-0.parquet"]
    assert [path.name for path in here.glob("[!._]*.parquet")] == ["part-0.parquet"]
    assert [path.name for path in here.glob(".part-*/chunk-*")] == ["chunk-0.parquet"]
    assert bucket.objects() == {
        "run/advantages/.part-1/chunk-0.parquet": b"more",
        "run/advantages/part-0.parquet": b"rows",
    }
    (here / "part-0.parquet").unlink()
    assert not (here / "part-0.parquet").exists()
    with pytest.raises(FileNotFoundError):
        (here / "part-0.parquet").read_bytes()


def test_large_and_empty_files_travel(bucket: Bucket, tmp_path: Path):
    for name, content in {"large": os.urandom(25_000_000), "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
        with (tmp_path / name).open("rb") as file:
            upload(file, bucket.path(name))
        download(bucket.path(name), tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == content == bucket.objects()[name]


def test_an_object_is_one_writers_or_the_others(bucket: Bucket):
    path, size = bucket.path("contested"), 12_000_000  # larger than one piece of an upload
    writers = [threading.Thread(target=path.write_bytes, args=(bytes([which]) * size,)) for which in (1, 2, 3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    content = path.read_bytes()
    assert len(content) == size
    assert len(set(content)) == 1


def test_trouble_with_a_store_is_one_line(bucket: Bucket, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"s3://no-such-bucket/x cannot be reached: .*NO_SUCH_BUCKET") as told:
        as_path("s3://no-such-bucket/x").write_text("")
    assert "\n" not in str(told.value)
    assert "endpoint, region and credentials" in str(told.value)
