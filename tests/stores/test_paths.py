"""A path in a store behaves like a local one, writes objects atomically, and reports failures in one line."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from stages.core.errors import UserError
from stages.core.paths import as_path, locate, relative_path
from stages.core.store import StorePath, download, upload
from tests.stores.bucket import Bucket


def test_addresses_of_stores_are_distinguished_from_local_paths():
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
def test_other_kinds_of_address_are_refused(wrong: str):
    with pytest.raises(UserError, match=r"expected a local path, s3://BUCKET/KEY or gs://BUCKET/KEY; got"):
        as_path(wrong)


def test_an_address_never_passes_for_a_file_of_this_machine():
    path: Any = StorePath.parse("s3://bucket/x")  # the type checker refuses each of these uses
    for use in (os.fspath, os.listdir, open, Path, shutil.rmtree, os.path.exists):
        with pytest.raises(TypeError, match="StorePath"):
            use(path)
    assert not isinstance(path, os.PathLike)
    assert not {"rename", "replace", "touch", "chmod", "rmdir", "symlink_to"} & set(dir(path))


def test_an_address_is_taken_apart_as_a_path_is_and_has_no_parent_above_its_bucket():
    path = StorePath.parse("s3://bucket/run/part-0.parquet")
    assert (path.name, path.stem, path.suffix) == ("part-0.parquet", "part-0", ".parquet")
    assert [str(above) for above in path.parents] == ["s3://bucket/run", "s3://bucket"]
    assert path.parent.parent.parent == path.parent.parent == StorePath.parse("s3://bucket")
    assert path.relative_to(path.parent.parent).as_posix() == "run/part-0.parquet"
    assert sorted([path, path.parent]) == [path.parent, path]
    assert repr(path) == "StorePath('s3://bucket/run/part-0.parquet')"


@pytest.mark.parametrize(
    ("path", "directory", "reference"),
    [
        ("s3://bucket/run/000/cutpoints", "s3://bucket/run/000/advantages", "../cutpoints"),
        ("s3://bucket/run/x", "s3://other/run/y", "s3://bucket/run/x"),
        ("s3://bucket/run/x", "/data/y", "s3://bucket/run/x"),
        ("/data/x", "s3://bucket/run/y", "/data/x"),
        ("/data/x", "/data/run/y", "../../x"),
    ],
)
def test_references_resolve_within_and_between_stores_and_disks(path: str, directory: str, reference: str):
    assert relative_path(as_path(path), as_path(directory)) == reference
    assert str(locate(reference, as_path(directory))) == path


def test_written_objects_are_listed_read_and_deleted(bucket: Bucket, tmp_path: Path):
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
    (here / "rows.csv").write_bytes(b"a\r\nb")
    assert [(here / "rows.csv").open(newline=newline).read() for newline in (None, "")] == ["a\nb", "a\r\nb"]
    (here / "part-0.parquet").unlink()
    assert not (here / "part-0.parquet").exists()
    with pytest.raises(FileNotFoundError):
        (here / "part-0.parquet").read_bytes()


def test_large_and_empty_files_survive_upload_and_download(bucket: Bucket, tmp_path: Path):
    for name, content in {"large": os.urandom(25_000_000), "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
        with (tmp_path / name).open("rb") as file:
            upload(file, bucket.path(name))
        with (tmp_path / "back").open("wb") as back:
            download(bucket.path(name), back)
        assert (tmp_path / "back").read_bytes() == content == bucket.objects()[name]


def test_concurrent_writers_never_mix_in_one_object(bucket: Bucket):
    path, size = bucket.path("contested"), 12_000_000  # larger than one part of a multipart upload
    writers = [threading.Thread(target=path.write_bytes, args=(bytes([which]) * size,)) for which in (1, 2, 3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    content = path.read_bytes()
    assert len(content) == size
    assert len(set(content)) == 1


def test_a_failure_of_a_store_is_reported_in_one_line(bucket: Bucket, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"s3://no-such-bucket/x cannot be reached: .*NO_SUCH_BUCKET") as caught:
        as_path("s3://no-such-bucket/x").write_text("")
    assert "\n" not in str(caught.value)
    assert "endpoint, region and credentials" in str(caught.value)
