"""Reading: complete artefacts open; missing, truncated, mixed or foreign parts are reported in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stages.core.errors import IncompleteInput, UserError
from stages.shards.lineage import Source
from stages.shards.parts import artefact_source, open_artefact
from stages.shards.schemas import BY_STAGE, CUTPOINTS, TRAJECTORIES, Schema
from tests.shards.samples import Settings, cutpoints, lineage, trajectories, write_part


def test_columns_are_returned_in_the_requested_order_with_their_descriptions(tmp_path: Path):
    write_part(tmp_path)
    artefact = open_artefact(tmp_path, TRAJECTORIES)
    table = artefact.read(artefact.parts[0], ["logprobs", "trajectory_id"])
    assert table.column_names == ["logprobs", "trajectory_id"]
    assert table.to_pylist() == trajectories(12).select(["logprobs", "trajectory_id"]).to_pylist()
    assert b"natural log" in table.schema.field("logprobs").metadata[b"doc"]


@pytest.mark.parametrize("schema", BY_STAGE.values(), ids=lambda schema: schema.stage)
def test_every_column_has_its_description_in_the_file(tmp_path: Path, schema: Schema):
    write_part(tmp_path, table=schema.arrow.empty_table(), schema=schema, work=lineage(schema=schema))
    written = pq.read_schema(next(tmp_path.glob("*.parquet")))
    assert [field.metadata[b"doc"].decode() for field in written] == [column.doc for column in schema.columns]
    assert written.types == schema.arrow.types


def test_a_single_part_is_an_artefact(tmp_path: Path):
    write_part(tmp_path, 0, 2)
    artefact = open_artefact(write_part(tmp_path, 1, 2), TRAJECTORIES)
    assert (artefact.rows, len(artefact.parts), artefact.directory) == (12, 1, tmp_path)


def test_the_schema_is_recognized(tmp_path: Path):
    write_part(tmp_path / "t")
    write_part(tmp_path / "c", table=cutpoints(3), schema=CUTPOINTS, work=lineage(schema=CUTPOINTS))
    assert [open_artefact(tmp_path / name).schema for name in "tc"] == [TRAJECTORIES, CUTPOINTS]


def test_missing_parts_are_named(tmp_path: Path):
    for index in range(8):
        if index not in (3, 5):
            write_part(tmp_path, index, 8)
    with pytest.raises(IncompleteInput, match=r"parts 3, 5 of 8 are missing.*spo rollout"):
        open_artefact(tmp_path, TRAJECTORIES)
    write_part(tmp_path, 3, 8)
    with pytest.raises(IncompleteInput, match="part 5 of 8 is missing"):
        open_artefact(tmp_path)


def test_parts_of_two_splits_are_refused(tmp_path: Path):
    for count in (1, 2):
        write_part(tmp_path / str(count), 0, count)
    shutil.copy(tmp_path / "1" / "part-00000-of-00001.parquet", tmp_path / "2")
    with pytest.raises(UserError, match="mixes parts of 1 and of 2"):
        open_artefact(tmp_path / "2", TRAJECTORIES)


def test_parts_of_different_work_are_refused(tmp_path: Path):
    write_part(tmp_path, 0, 2)
    write_part(tmp_path, 1, 2, work=lineage(Settings(temperature=0.6)), overwrite=True)
    with pytest.raises(IncompleteInput, match=r"other work than.*temperature"):
        open_artefact(tmp_path, TRAJECTORIES)


def test_a_part_that_was_renamed_to_another_part_is_refused(tmp_path: Path):
    first = write_part(tmp_path, 0, 2)
    shutil.copy(first, tmp_path / "part-00001-of-00002.parquet")
    with pytest.raises(
        IncompleteInput, match=r"00001-of-00002\.parquet was written as part-00000-of-00002.*spo rollout"
    ):
        open_artefact(tmp_path, TRAJECTORIES)


def test_the_error_for_another_stage_names_the_writing_and_the_reading_command(tmp_path: Path):
    write_part(tmp_path, table=cutpoints(3), schema=CUTPOINTS, work=lineage(schema=CUTPOINTS))
    with pytest.raises(UserError, match=r"cutpoints, made by `spo segment`; expected trajectories.*`spo estimate`"):
        open_artefact(tmp_path, TRAJECTORIES)


def test_a_part_truncated_at_any_byte_is_incomplete(tmp_path: Path):
    complete = write_part(tmp_path / "whole").read_bytes()
    truncated = tmp_path / "part-00000-of-00001.parquet"
    for length in [0, 3, *range(4, len(complete), 97), len(complete) - 1]:
        truncated.write_bytes(complete[:length])
        with pytest.raises(IncompleteInput, match=r"part-00000-of-00001\.parquet is truncated.*spo rollout"):
            open_artefact(tmp_path, TRAJECTORIES)


def test_a_corrupt_page_is_detected_on_reading(tmp_path: Path):
    path = write_part(tmp_path)
    content, column = bytearray(path.read_bytes()), pq.read_metadata(path).row_group(0).column(7)
    assert column.path_in_schema.startswith("logprobs")
    content[column.data_page_offset + column.total_compressed_size - 1] ^= 0xFF
    path.write_bytes(bytes(content))
    artefact = open_artefact(tmp_path, TRAJECTORIES)
    assert artefact.read(artefact.parts[0], ["token_ids"]).num_rows == 12
    with pytest.raises(IncompleteInput, match="truncated or corrupt"):
        artefact.read(artefact.parts[0], ["logprobs"])


def test_missing_paths_and_other_files_are_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "rows.parquet").write_text('{"question": "1 + 1"}')
    with pytest.raises(IncompleteInput, match=r"does not exist.*spo rollout"):
        open_artefact(tmp_path / "nowhere", TRAJECTORIES)
    with pytest.raises(IncompleteInput, match="contains no part yet"):
        open_artefact(tmp_path / "empty", TRAJECTORIES)
    with pytest.raises(UserError, match=r"no Parquet file \(found: config\.json\)"):
        open_artefact(tmp_path / "model", TRAJECTORIES)
    with pytest.raises(UserError, match="is not a Parquet file"):
        open_artefact(tmp_path / "rows.parquet", TRAJECTORIES)


def test_a_stray_file_among_parts_is_named(tmp_path: Path):
    shutil.copy(write_part(tmp_path), tmp_path / "copy.parquet")
    with pytest.raises(UserError, match=r"copy\.parquet"):
        open_artefact(tmp_path, TRAJECTORIES)


def test_a_newer_schema_is_refused(tmp_path: Path):
    path = write_part(tmp_path)
    newer = Schema(TRAJECTORIES.stage, TRAJECTORIES.version + 1, TRAJECTORIES.columns, TRAJECTORIES.row_group)
    with pytest.raises(UserError, match="version 2 of the table trajectories; this spo reads version 3"):
        open_artefact(path, newer)


def test_inputs_are_relative_to_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_part(tmp_path / "trajectories")
    monkeypatch.chdir(tmp_path)
    artefact = open_artefact("trajectories", TRAJECTORIES)
    expected = Source("../../trajectories", artefact.fingerprint(), "rollout")
    assert artefact_source(artefact, Path("runs/out")) == expected
    assert artefact_source(artefact, tmp_path / "runs" / "out", artefact.parts[0]) == expected
