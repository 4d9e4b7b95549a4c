"""The contract on disk holds in a store: parts appear complete, work resumes, readers fetch only their columns."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.core import paths, store
from stages.core.errors import FingerprintMismatch, IncompleteInput, Interrupted, StoreUnreachable, UserError
from stages.shards import chunks, writing
from stages.shards.parts import open_artefact
from stages.shards.schemas import TRAJECTORIES
from stages.shards.writing import open_part
from tests.shards.samples import Notes, Settings, files, lineage, trajectories, write_part
from tests.stores.bucket import Bucket
from tests.stores.crash_writer import write

ROOT = Path(__file__).resolve().parents[2]


def artefact(bucket: Bucket, key: str = "") -> dict[str, bytes]:
    """Return all objects except the logs."""
    return {name: content for name, content in bucket.objects().items() if "_logs/" not in name}


def test_a_part_in_a_store_equals_the_part_on_disk(bucket: Bucket, tmp_path: Path):
    write(tmp_path)
    write(bucket.path())
    assert artefact(bucket) == files(tmp_path), "no chunk and no other object is left"
    write_part(bucket.path(), 0, 2, table=trajectories(12))
    read = pandas.read_parquet(f"s3://{bucket.name}/")
    assert len(read) == 35
    assert list(read["text"][12:]) == [f"answer {n}" for n in range(23)]
    assert open_artefact(f"s3://{bucket.name}", TRAJECTORIES).rows == 35


def test_finished_parts_are_skipped_and_parts_of_other_work_are_refused(bucket: Bucket):
    write(bucket.path("t"))
    notes = Notes()
    write_part(bucket.path("t"), 1, 2, table=trajectories(23), chunk=12, progress=notes)
    assert notes.lines == [f"s3://{bucket.name}/t/part-00001-of-00002.parquet is up to date (23 rows)"]
    with pytest.raises(IncompleteInput, match=r"part 0 of 2 is missing in s3://"):
        open_artefact(bucket.path("t"))
    other = lineage(Settings(temperature=0.5))
    with pytest.raises(FingerprintMismatch, match=r"temperature: found 1.0, requested 0.5"):
        write_part(bucket.path("t"), 1, 2, work=other)
    with pytest.raises(FingerprintMismatch, match="another split"):
        write_part(bucket.path("t"), 0, 3)
    write_part(bucket.path("t"), 0, 1, table=trajectories(5), work=other, overwrite=True)
    assert list(artefact(bucket)) == ["t/part-00000-of-00001.parquet"]


def test_a_writer_killed_before_during_or_after_any_upload_resumes(bucket: Bucket):
    part = "part-00001-of-00002.parquet"
    write(bucket.path("unbroken"))
    unbroken = bucket.objects()[f"unbroken/{part}"]
    moments = range(1, 3 * 3 + 2)  # three events for each of two chunks and the part; then one that never occurs
    requests = "".join(f"{bucket.path(str(moment))} {moment}\n" for moment in moments)
    command = [sys.executable, "-m", "tests.stores.crash_writer"]
    ended = subprocess.run(command, cwd=ROOT, input=requests, capture_output=True, text=True, check=True)
    assert [int(line) for line in ended.stdout.split()] == [signal.SIGKILL] * 9 + [0]
    for name, content in artefact(bucket).items():
        assert pq.ParquetFile(io.BytesIO(content)).read().num_rows, f"{name} is complete"
    for moment in moments:
        here = bucket.path(str(moment))
        if moment < 9:
            with pytest.raises(IncompleteInput):
                open_artefact(here)
        write(here)
    expected = {f"{here}/{part}": unbroken for here in ("unbroken", *map(str, moments))}
    assert artefact(bucket) == expected, "the same bytes and no other object, whenever the writer was killed"


def test_a_signal_during_an_upload_leaves_a_complete_object(bucket: Bucket, monkeypatch: pytest.MonkeyPatch):
    interrupted = Event()

    def put_slowly(filesystem: Any, key: str, data: Any) -> int:
        with filesystem.open_output_stream(key) as stream:
            stream.write(data[:10])
            os.kill(os.getpid(), signal.SIGALRM)
            assert interrupted.wait(600)
            return stream.write(data[10:])

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        raise Interrupted("SIGALRM")

    monkeypatch.setattr(store, "_put", put_slowly)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(Interrupted):
            bucket.path("x").write_bytes(bytes(100))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert bucket.objects() == {"x": bytes(100)}


def test_the_slower_of_two_writers_finds_the_part_finished(bucket: Bucket):
    """A store has no locks: both writers write the same objects."""
    rows, here = trajectories(23), bucket.path("t")
    keys = ["rows 0-12", "rows 12-24"]
    notes = Notes()
    with open_part(here, 1, 2, lineage(), TRAJECTORIES, progress=notes) as slow:
        missing = list(slow.missing(keys))
        slow.commit(missing[0], rows.slice(0, 12), {"rows": 12})
        write(here)
        done = artefact(bucket)
        slow.commit(missing[1], rows.slice(12), {"rows": 11})
        assert slow.committed(["text"])["text"].to_pylist() == rows["text"].to_pylist()
        slow.finish({"rows": 23})
    assert slow.lineage.counts == {"rows": 23}
    assert artefact(bucket) == done
    assert any("is up to date" in line for line in notes.lines)


def test_a_part_that_another_writer_finishes_while_chunks_are_read_is_found(bucket: Bucket):
    rows, here = trajectories(23), bucket.path("t")
    with open_part(here, 1, 2, lineage(), TRAJECTORIES) as slow:
        for chunk, start in zip(slow.missing(["rows 0-12", "rows 12-24"]), (0, 12), strict=True):
            slow.commit(chunk, rows.slice(start, 12), {"rows": 12 - chunk})
        was_published = iter([False, True])
        slow._was_published_elsewhere = lambda: next(was_published)  # the first check comes too early
        write(here)
        done = artefact(bucket)
        slow.finish({"rows": 23})
    assert artefact(bucket) == done


def test_a_store_that_fails_for_a_while_loses_no_work(bucket: Bucket, monkeypatch: pytest.MonkeyPatch):
    def fail(path: Path, *_: Any) -> Any:
        with store.store_errors(path):
            raise OSError("AWS Error SLOW_DOWN during GetObject operation: reduce your request rate")

    begun, done = bucket.path("begun"), bucket.path("done")
    with open_part(begun, 1, 2, lineage(), TRAJECTORIES) as part:
        part.commit(next(part.missing(["rows 0-12", "rows 12-24"])), trajectories(12), {"rows": 12})
    write(done)
    before = artefact(bucket)
    for module in (chunks, writing):
        monkeypatch.setattr(module, "read_footer", fail)
    for here in (begun, done):
        with pytest.raises(StoreUnreachable, match="cannot be reached: AWS Error SLOW_DOWN"):
            write_part(here, 1, 2, table=trajectories(23), chunk=12, overwrite=True)
    assert artefact(bucket) == before, "chunks are not treated as torn, nor the part as other work"


def test_a_signal_is_reported_even_if_the_log_cannot_be_written(bucket: Bucket, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> int:
        raise OSError("AWS Error SLOW_DOWN")

    def write_until_interrupted() -> None:
        with open_part(bucket.path("t"), 1, 2, lineage(), TRAJECTORIES) as part:
            part.commit(next(part.missing(["rows 0-12", "rows 12-24"])), trajectories(12), {"rows": 12})
            monkeypatch.setattr(store, "_put", fail)
            raise Interrupted("SIGUSR1")

    with pytest.raises(Interrupted, match="1 of 2 chunks committed"):
        write_until_interrupted()


def test_the_log_records_start_chunks_and_end(bucket: Bucket):
    write(bucket.path("t"))
    log = bucket.objects()["_logs/t/part-00001-of-00002.log"].decode()
    assert "started: " in log
    assert "chunk 2 of 2: 11 rows" in log
    assert "finished: 23 rows" in log
    write_part(bucket.path("t"), 1, 2, table=trajectories(3), work=lineage(Settings(seed=1)), overwrite=True)
    again = bucket.objects()["_logs/t/part-00001-of-00002.log"].decode()
    assert again.startswith(log)
    assert "finished: 3 rows" in again


def test_only_the_columns_that_are_read_are_transferred(bucket: Bucket, endpoint: str):
    def bytes_sent() -> int:
        with urllib.request.urlopen(f"{endpoint}/bytes-sent") as answer:
            return int(answer.read())

    noise = np.random.default_rng(0)
    table = trajectories(400)
    heavy = pa.array([-noise.random(2000, np.float32) for _ in range(400)], pa.list_(pa.float32()))
    tokens = pa.array([noise.integers(0, 99, 2000, np.int32) for _ in range(400)], pa.list_(pa.int32()))
    for name, column in {"logprobs": heavy, "token_ids": tokens}.items():
        table = table.set_column(table.column_names.index(name), table.schema.field(name), column)
    write_part(bucket.path("t"), table=table, chunk=400)
    size = len(bucket.objects()["t/part-00000-of-00001.parquet"])
    assert size > 3_000_000

    before = bytes_sent()
    found = open_artefact(bucket.path("t"), TRAJECTORIES)
    assert found.read_all(["reward", "question_id"]).num_rows == 400
    assert bytes_sent() - before < 200_000, "the footer and two small columns"
    before = bytes_sent()
    assert found.read_all(["logprobs"]).num_rows == 400
    assert bytes_sent() - before < size


def test_a_torn_object_and_a_foreign_file_raise_different_errors(bucket: Bucket):
    write_part(bucket.path("t"))
    content = bucket.objects()["t/part-00000-of-00001.parquet"]
    bucket.put("t/part-00000-of-00001.parquet", content[: len(content) // 2])
    with pytest.raises(IncompleteInput, match="is truncated or corrupt"):
        open_artefact(bucket.path("t"))
    bucket.put("t/part-00000-of-00001.parquet", b"text, and no table")
    with pytest.raises(UserError, match=r"is not a Parquet file \(it begins with b'text'\)"):
        open_artefact(bucket.path("t"))


def test_a_missing_bucket_is_an_error_before_work_begins(bucket: Bucket):
    with (
        pytest.raises(UserError, match=r"s3://no-such-bucket/.*cannot be reached: .*NO_SUCH_BUCKET"),
        open_part(paths.as_path("s3://no-such-bucket/t"), 0, 1, lineage(), TRAJECTORIES) as part,
    ):
        part.missing(["rows 0-1"])
    with pytest.raises(IncompleteInput, match="s3://no-such-bucket/t does not exist"):
        open_artefact("s3://no-such-bucket/t")


def test_parts_written_by_another_tool_are_read_from_a_store(bucket: Bucket):
    buffer = io.BytesIO()
    pq.write_table(trajectories(5), buffer)
    bucket.put("theirs/rows.parquet", buffer.getvalue())
    found = open_artefact(bucket.path("theirs"), TRAJECTORIES)
    assert found.lineage is None
    assert found.read_all(["trajectory_id"]).num_rows == 5
    assert found.fingerprint() == open_artefact(bucket.path("theirs/rows.parquet"), TRAJECTORIES).fingerprint()
    assert os.path.basename(str(found.parts[0].path)) == "rows.parquet"
