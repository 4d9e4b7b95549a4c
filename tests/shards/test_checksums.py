"""Test that edited or damaged parts are found, whoever edited them and wherever the damage is."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.errors import IncompleteInput, SpoError, UserError
from stages.shards import checksums
from stages.shards.parts import open_artefact
from stages.shards.schemas import TRAJECTORIES
from tests.shards.samples import trajectories, write_part

Edit = Callable[[list[dict[str, Any]]], object]


def flip_rewards(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        row["reward"] = 1 - row["reward"]


def set_logprob(value: float) -> Edit:
    return lambda rows: rows[3]["logprobs"].__setitem__(0, value)


EDITS: dict[str, Edit] = {
    "flipped rewards": flip_rewards,
    "a NaN reward": lambda rows: rows[2].update(reward=float("nan")),
    "a log-probability of minus infinity": set_logprob(float("-inf")),
    "a positive log-probability": set_logprob(0.5),
    "one log-probability too many": lambda rows: rows[1]["logprobs"].append(-1.0),
    "a repeated id": lambda rows: rows[1].update(trajectory_id=rows[0]["trajectory_id"]),
    "other tokens": lambda rows: rows[4]["token_ids"].reverse(),
    "two rows exchanged": lambda rows: rows.reverse(),
    "one row less": lambda rows: rows.pop(),
}


def edit(part: Path, change: Edit, *, keep_footer: bool) -> None:
    table = pq.ParquetFile(part).read()
    rows = table.to_pylist()
    change(rows)
    schema = table.schema if keep_footer else table.schema.remove_metadata()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), part)


@pytest.mark.parametrize("name", EDITS)
def test_rows_that_another_tool_changed_under_our_footer_are_refused(name: str, tmp_path: Path):
    edit(write_part(tmp_path), EDITS[name], keep_footer=True)
    with pytest.raises(IncompleteInput, match="was edited or damaged since it was written"):
        open_artefact(tmp_path, TRAJECTORIES)


def test_without_the_footer_edited_rows_are_data_of_another_tool(tmp_path: Path):
    edit(write_part(tmp_path), flip_rewards, keep_footer=False)
    artefact = open_artefact(tmp_path, TRAJECTORIES)
    assert artefact.lineage is None
    assert artefact.read_all(["reward"])["reward"].to_pylist()[:2] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("a NaN reward", r"reward must be a finite number.*row 2 "),
        ("a log-probability of minus infinity", r"logprobs must be finite.*row 3 "),
        ("one log-probability too many", r"differ in length: row 1 "),
        ("a repeated id", "must be unique"),
    ],
)
def test_without_the_footer_impossible_values_are_refused_with_their_row(name: str, problem: str, tmp_path: Path):
    edit(write_part(tmp_path), EDITS[name], keep_footer=False)
    with pytest.raises(UserError, match=problem):
        open_artefact(tmp_path, TRAJECTORIES).read_all(["trajectory_id", "token_ids", "logprobs", "reward"])


def test_rows_that_do_not_fit_an_intact_footer_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As after an edit that keeps the layout: the digests are those of the rows with other rewards."""
    other = checksums.RowsDigest(TRAJECTORIES.arrow)
    table = trajectories(12)
    other.update(table.set_column(12, TRAJECTORIES.arrow.field("reward"), pa.array([0.5] * 12, pa.float32())))
    found = other.digests()
    monkeypatch.setattr(checksums.RowsDigest, "digests", lambda _: found)
    write_part(tmp_path, chunk=12)
    monkeypatch.undo()
    artefact = open_artefact(tmp_path, TRAJECTORIES)
    assert artefact.read_all(["token_ids"]).num_rows == 12
    with pytest.raises(IncompleteInput, match="the rows of reward are not those"):
        artefact.read_all(["token_ids", "reward"])


def test_a_flipped_bit_anywhere_is_found_or_changes_no_row(tmp_path: Path):
    part = write_part(tmp_path / "out")
    content, expected = part.read_bytes(), pq.ParquetFile(part).read()
    footer = len(content) - int.from_bytes(content[-8:-4], "little") - 8
    choose = random.Random(0)
    silent, lines = 0, list[str]()
    places = [*range(footer, len(content), 7), *(choose.randrange(footer) for _ in range(400))]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << choose.randrange(8)
        part.write_bytes(damaged)
        try:
            found = open_artefact(tmp_path / "out", TRAJECTORIES).read_all(TRAJECTORIES.names)
        except SpoError as error:
            lines += str(error).splitlines()
        else:
            assert place < footer, f"byte {place - footer} of the footer"
            assert found.equals(expected.cast(found.schema)), f"byte {place}"
            silent += 1
    assert len(lines) == len(places) - silent
    assert silent < len(places) / 4, "most of the file matters"


@given(
    st.lists(st.tuples(st.text(max_size=3) | st.none(), st.lists(st.integers(0, 9), max_size=3)), max_size=12),
    st.integers(1, 5),
)
def test_digests_depend_on_the_values_and_not_on_their_division(rows: list[tuple[str, list[int]]], size: int):
    schema = pa.schema({"name": pa.string(), "numbers": pa.list_(pa.int32())})
    table = pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)

    def digests(*pieces: pa.Table) -> dict[str, str]:
        digest = checksums.RowsDigest(schema)
        for piece in pieces:
            digest.update(piece)
        return digest.digests()

    whole = digests(table)
    assert digests(*(table.slice(start, size) for start in range(0, len(rows), size))) == whole
    if rows and rows[0] != rows[-1]:
        turned = digests(table.take(list(reversed(range(len(rows))))))
        assert turned != whole or rows == rows[::-1]
