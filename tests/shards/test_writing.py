"""Parts are skipped, refused, replaced or resumed; their bytes do not depend on the chunks."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import tempfile
import threading
from pathlib import Path

import numpy as np
import pandas
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.errors import FingerprintMismatch, IncompleteInput, UserError
from stages.shards import writing
from stages.shards.disk import locked_chunks
from stages.shards.names import parse_part_name
from stages.shards.parts import open_artefact
from stages.shards.schemas import CUTPOINTS, TRAJECTORIES
from stages.shards.writing import open_part
from tests.shards.samples import Notes, Settings, cutpoints, files, lineage, trajectories, write_part

OTHER = lineage(Settings(temperature=0.6))
CHUNKED = ["rows 0-5", "rows 5-10", "rows 10-15"]


def commit_some(directory: Path, chunks: int, keys: list[str] = CHUNKED) -> None:
    """Start a part and stop after some chunks of five rows."""
    with open_part(directory, 0, 1, lineage(), TRAJECTORIES) as part:
        for i in list(part.missing(keys))[:chunks]:
            rows = trajectories(12).slice(5 * i, 5)
            part.commit(i, rows, {"rows": rows.num_rows})


FLOAT32 = st.floats(width=32, allow_nan=False)
INT32 = st.integers(0, 2**31 - 1)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            **{name: st.text() for name in ("trajectory_id", "question_id", "finish_reason", "reference")},
            **{name: st.none() | st.text() for name in ("parent_id", "prompt", "text", "answer")},
            "depth": INT32,
            "prompt_token_ids": st.lists(INT32, max_size=4),
            "token_ids": st.lists(INT32, max_size=4),
            "logprobs": st.lists(FLOAT32, max_size=4),
            "reward": st.none() | FLOAT32,
        }
    ),
    max_size=30,
)


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, chunk=st.integers(1, 31), row_group=st.integers(1, 31))
def test_any_chunking_gives_the_same_bytes_and_the_rows_come_back(rows: list[dict], chunk: int, row_group: int):
    schema = dataclasses.replace(TRAJECTORIES, row_group=row_group)
    table = pa.Table.from_pylist(rows, schema=schema.arrow)
    with tempfile.TemporaryDirectory() as name:
        chunked, unchunked = Path(name, "chunked"), Path(name, "unchunked")
        write_part(chunked, table=table, chunk=chunk, schema=schema)
        with open_part(unchunked, 0, 1, lineage(), schema) as part:
            part.write(table, {"rows": table.num_rows} if rows else {}, {"rows": table.num_rows})
        assert files(chunked) == files(unchunked)
        assert open_artefact(unchunked, schema).read_all(schema.names).to_pylist() == table.to_pylist()


def test_the_order_and_memory_layout_of_columns_do_not_matter(tmp_path: Path):
    table = trajectories(12)
    write_part(tmp_path / "a", table=table)
    shuffled = table.select(sorted(table.column_names)).replace_schema_metadata({"x": "y"})
    pieces = pa.concat_tables([shuffled.slice(i, 1) for i in range(12)])
    write_part(tmp_path / "b", table=pieces.set_column(0, "answer", pieces["answer"].cast(pa.large_string())))
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_pandas_reads_a_directory_that_also_holds_chunks(tmp_path: Path):
    for index in (0, 1):
        write_part(tmp_path, index, 3)
    with open_part(tmp_path, 2, 3, lineage(), TRAJECTORIES) as part:
        first = next(part.missing(["rows 0-12"]))
        part.commit(first, trajectories(12))
        assert any(path.name.startswith(".part") for path in tmp_path.iterdir())
        frame = pandas.read_parquet(tmp_path)
    assert frame["trajectory_id"].tolist() == trajectories(24)["trajectory_id"].to_pylist()
    assert {ids.dtype for ids in frame["token_ids"]} == {np.dtype(np.int32)}
    assert {values.dtype for values in frame["logprobs"]} == {np.dtype(np.float32)}


def test_a_part_may_have_no_rows(tmp_path: Path):
    write_part(tmp_path, 0, 2)
    write_part(tmp_path, 1, 2, table=trajectories(0))
    assert open_artefact(tmp_path, TRAJECTORIES).rows == len(pandas.read_parquet(tmp_path)) == 12


def test_the_same_work_is_skipped_with_a_note(tmp_path: Path):
    path = write_part(tmp_path)
    before, notes = (path.stat().st_ino, path.stat().st_mtime_ns), Notes()
    with open_part(tmp_path, 0, 1, lineage(), TRAJECTORIES, progress=notes) as part:
        assert part.up_to_date
        assert part.rows == 12
        assert part.lineage.counts == {"rows": 12}
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == before
    assert "up to date" in notes.lines[0]


def test_other_work_is_refused_with_the_differences(tmp_path: Path):
    write_part(tmp_path)
    before = files(tmp_path)
    with pytest.raises(FingerprintMismatch, match=r"temperature: found 1\.0, requested 0\.6.*--overwrite"):
        write_part(tmp_path, work=OTHER)
    assert files(tmp_path) == before


def test_overwrite_replaces_only_other_work(tmp_path: Path):
    paths = [write_part(tmp_path, index, 2, overwrite=True) for index in (0, 1)]
    before = paths[1].stat().st_ino, paths[1].stat().st_mtime_ns
    write_part(tmp_path, 0, 2, work=OTHER, overwrite=True)
    assert (paths[1].stat().st_ino, paths[1].stat().st_mtime_ns) == before
    written = open_artefact(paths[0], TRAJECTORIES).parts[0].lineage
    assert written
    assert written.config["temperature"] == 0.6
    write_part(tmp_path, 1, 2, overwrite=True)
    assert (paths[1].stat().st_ino, paths[1].stat().st_mtime_ns) == before, "it is up to date"


def test_a_part_next_to_parts_of_other_work_is_refused(tmp_path: Path):
    write_part(tmp_path, 0, 2)
    with pytest.raises(FingerprintMismatch, match="temperature"):
        write_part(tmp_path, 1, 2, work=OTHER)
    assert [path.name for path in tmp_path.glob("*.parquet")] == ["part-00000-of-00002.parquet"]


def test_another_split_is_refused_and_overwrite_removes_it_at_the_end(tmp_path: Path):
    for index in range(3):
        write_part(tmp_path, index, 3)
    with pytest.raises(FingerprintMismatch, match="another split"):
        write_part(tmp_path, 0, 2)
    with open_part(tmp_path, 0, 2, lineage(), TRAJECTORIES, overwrite=True) as part:
        for i in part.missing(["rows 0-12"]):
            part.commit(i, trajectories(12))
            assert len(list(tmp_path.glob("*.parquet"))) == 3, "the old parts stay until the new one is done"
        part.finish()
    assert list(files(tmp_path)) == ["part-00000-of-00002.parquet"]


def test_unfinished_work_of_another_split_is_refused(tmp_path: Path):
    commit_some(tmp_path, 1)
    with pytest.raises(FingerprintMismatch, match="another split"):
        write_part(tmp_path, 0, 2)
    write_part(tmp_path, 0, 2, overwrite=True)
    assert list(files(tmp_path)) == ["part-00000-of-00002.parquet"]


def test_two_parts_may_remove_the_chunks_of_another_split_at_once(tmp_path: Path):
    commit_some(tmp_path, 1)
    others = tmp_path / ".part-00000-of-00001"
    release = threading.Event()

    def remove() -> None:
        with locked_chunks(others):
            locked.set()
            release.wait(timeout=30)

    locked = threading.Event()
    other_part = threading.Thread(target=remove)
    other_part.start()
    assert locked.wait(timeout=30)
    threading.Timer(0.2, release.set).start()
    write_part(tmp_path, 0, 2, overwrite=True)
    other_part.join()
    assert list(files(tmp_path)) == ["part-00000-of-00002.parquet"]


def test_a_split_that_is_being_written_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writing, "_CLEARING_SECONDS", 0.0)
    with open_part(tmp_path, 0, 1, lineage(), TRAJECTORIES) as part:
        for i in part.missing(["rows 0-12"]):
            part.commit(i, trajectories(12))
        with pytest.raises(UserError, match=f"process {os.getpid()}"):
            write_part(tmp_path, 0, 2, overwrite=True)
        part.finish()
    assert list(files(tmp_path)) == ["part-00000-of-00001.parquet"]


def test_overwrite_never_replaces_files_of_another_stage_or_tool(tmp_path: Path):
    write_part(tmp_path / "trajectories")
    pandas.DataFrame({"precious": [1]}).to_parquet(tmp_path / "part-00000-of-00001.parquet")
    before = files(tmp_path)
    for directory, author in (("trajectories", "spo rollout"), ("", "another tool")):
        with pytest.raises(FingerprintMismatch, match=author):
            write_part(
                tmp_path / directory,
                table=cutpoints(3),
                schema=CUTPOINTS,
                work=lineage(schema=CUTPOINTS),
                overwrite=True,
            )
    assert files(tmp_path) == before


def test_committed_chunks_are_not_redone(tmp_path: Path):
    commit_some(tmp_path, 2)
    notes = Notes()
    with open_part(tmp_path, 0, 1, lineage(), TRAJECTORIES, progress=notes) as part:
        assert list(part.missing(CHUNKED)) == [2]
        assert part.rows == 10
        part.commit(2, trajectories(2, 10), {"rows": 2})
        assert part.committed(["reward"]) == trajectories(12).select(["reward"])
        part.finish({"rows": 12})
    assert notes.lines == ["part-00000-of-00001.parquet: resuming, 2 of 3 chunks committed"]
    write_part(tmp_path / "uninterrupted")
    assert part.path.read_bytes() == (tmp_path / "uninterrupted" / part.path.name).read_bytes()


def test_chunks_of_another_size_are_deleted_with_a_note(tmp_path: Path):
    commit_some(tmp_path, 2)
    notes = Notes()
    write_part(tmp_path, chunk=4, progress=notes)
    assert notes.lines == ["part-00000-of-00001.parquet: 2 chunks are corrupt or of another size and are redone"]
    write_part(tmp_path / "uninterrupted")
    assert (
        files(tmp_path / "uninterrupted")["part-00000-of-00001.parquet"]
        == files(tmp_path)["part-00000-of-00001.parquet"]
    )


def test_a_corrupt_chunk_is_redone(tmp_path: Path):
    commit_some(tmp_path, 2)
    corrupt = tmp_path / ".part-00000-of-00001" / "chunk-00001.parquet"
    corrupt.write_bytes(corrupt.read_bytes()[:-40])
    with open_part(tmp_path, 0, 1, lineage(), TRAJECTORIES) as part:
        assert list(part.missing(CHUNKED)) == [1, 2]


@pytest.mark.parametrize("damage", ["a bit of the rows", "the end"])
def test_a_damaged_part_is_not_up_to_date(tmp_path: Path, damage: str):
    path = write_part(tmp_path)
    whole = path.read_bytes()
    at = whole.index(b"PAR1", 4) if damage == "the end" else 60
    path.write_bytes(whole[:at] if damage == "the end" else whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(IncompleteInput, match="--overwrite"):
        write_part(tmp_path)
    write_part(tmp_path, overwrite=True)
    assert path.read_bytes() == whole


def test_unfinished_other_work_is_refused_unless_overwritten(tmp_path: Path):
    commit_some(tmp_path, 2)
    before = files(tmp_path)
    with pytest.raises(FingerprintMismatch, match="temperature"):
        write_part(tmp_path, work=OTHER)
    assert files(tmp_path) == before
    write_part(tmp_path, work=OTHER, overwrite=True)
    write_part(tmp_path / "uninterrupted", work=OTHER)
    assert (
        files(tmp_path / "uninterrupted")["part-00000-of-00001.parquet"]
        == files(tmp_path)["part-00000-of-00001.parquet"]
    )


def test_two_processes_cannot_write_one_part(tmp_path: Path):
    with open_part(tmp_path, 0, 1, lineage(), TRAJECTORIES):
        with pytest.raises(UserError, match=f"process {os.getpid()}"):
            write_part(tmp_path)
        write_part(tmp_path / "another")
    write_part(tmp_path)


def test_an_error_before_any_work_leaves_no_trace(tmp_path: Path):
    def fail():
        with open_part(tmp_path / "runs" / "out", 0, 1, lineage(), TRAJECTORIES):
            raise UserError("the model has no tokenizer")

    with pytest.raises(UserError, match="tokenizer"):
        fail()
    assert not (tmp_path / "runs" / "out").exists()


def test_times_and_speeds_are_in_the_log_and_not_in_the_part(tmp_path: Path):
    commit_some(tmp_path, 1)
    write_part(tmp_path)
    log = (tmp_path.parent / "_logs" / tmp_path.name / "part-00000-of-00001.log").read_text()
    expected = [
        "started: ",
        "chunk 1 of 3: 5 rows",
        "started: ",
        "resuming, 1 of 3",
        "chunk 3 of 3",
        "finished: 12 rows",
    ]
    assert [line for line in expected if line not in log] == []
    assert log.count("started: ") == 2
    assert f"process {os.getpid()}" in log


def test_a_file_in_place_of_the_directory_and_missing_permissions_are_user_errors(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    for directory in (tmp_path / "file", tmp_path / "file" / "out", Path("/proc/out")):
        with pytest.raises(UserError, match=r"cannot write|is a file; expected a directory"):
            write_part(directory)


def test_tables_that_violate_the_schema_are_programming_errors(tmp_path: Path):
    table = trajectories(3)
    bad = {
        "columns": table.drop(["reward"]),
        "null": table.set_column(0, "trajectory_id", pa.nulls(3, pa.string())),
    }
    with open_part(tmp_path, 0, 1, lineage(), TRAJECTORIES) as part:
        assert list(part.missing(["a", "b"])) == [0, 1]
        for name, wrong in bad.items():
            with pytest.raises(ValueError, match=name):
                part.commit(0, wrong)
        with pytest.raises(ValueError, match="whole numbers"):
            part.commit(0, table, {"tokens": 0.5})  # type: ignore[dict-item]
        part.commit(0, table)
        with pytest.raises(ValueError, match="not one of the missing"):
            part.commit(0, table)
        with pytest.raises(ValueError, match="1 of 2 chunks"):
            part.finish()


def test_a_moved_run_is_still_up_to_date(tmp_path: Path):
    write_part(tmp_path / "old")
    shutil.move(tmp_path / "old", tmp_path / "new")
    with open_part(tmp_path / "new", 0, 1, lineage(), TRAJECTORIES) as part:
        assert part.up_to_date


def test_chunks_of_another_task_may_vanish_while_a_part_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another task finishes at that moment; `tests/pipeline/test_slurm_cluster.py` runs 64 tasks at once."""
    unfinished = tmp_path / ".part-00001-of-00002"
    unfinished.mkdir()
    (unfinished / "chunk-00000.parquet").touch()

    def parse(name: str) -> tuple[int, int] | None:  # what is done between finding names and opening them
        shutil.rmtree(unfinished, ignore_errors=True)
        return parse_part_name(name)

    monkeypatch.setattr(writing, "parse_part_name", parse)
    write_part(tmp_path, 0, 4)
    assert open_artefact(tmp_path / "part-00000-of-00004.parquet").rows == 12


def test_parts_written_in_any_order_are_one_table(tmp_path: Path):
    order = list(range(5))
    random.Random(1).shuffle(order)
    for index in order:
        write_part(tmp_path, index, 5)
    assert open_artefact(tmp_path).read_all(TRAJECTORIES.names).to_pylist() == trajectories(60).to_pylist()
