"""Foreign Parquet: read if its columns suffice; otherwise refused with the name of the column and the row."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.core.errors import UserError
from stages.shards.parts import Artefact, open_artefact
from stages.shards.schemas import CUTPOINTS, TRAJECTORIES
from tests.shards.samples import trajectories


def rows(count: int = 3) -> list[dict[str, Any]]:
    """Return rows as another framework might write them: no ids, no depth, 64-bit types."""
    return [
        {"prompt_token_ids": [1, n // 2], "token_ids": [5, 6], "logprobs": [-0.5, 0.0], "reference": "7", "reward": 1}
        for n in range(count)
    ]


def save(path: Path, content: list[dict[str, Any]] | pa.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content if isinstance(content, pa.Table) else pa.Table.from_pylist(content), path)
    return path


def read(path: Path, *columns: str) -> pa.Table:
    artefact = open_artefact(path, TRAJECTORIES)
    return artefact.read_all(columns or TRAJECTORIES.names)


def test_missing_ids_and_depth_are_derived(tmp_path: Path):
    table = read(save(tmp_path / "mine.parquet", rows()))
    assert table.schema == TRAJECTORIES.arrow
    question = ["q" + hashlib.blake2b(b"\1\0\0\0" + bytes([n, 0, 0, 0]), digest_size=6).hexdigest() for n in (0, 1)]
    assert table["question_id"].to_pylist() == [question[0], question[0], question[1]]
    assert table["trajectory_id"].to_pylist() == [f"{question[0]}/0", f"{question[0]}/1", f"{question[1]}/2"]
    assert table["depth"].to_pylist() == [0, 0, 0]
    assert table["finish_reason"].to_pylist() == ["stop"] * 3
    for name in ("parent_id", "prompt", "text", "answer"):
        assert table[name].null_count == 3


def test_ids_are_derived_from_prompt_texts(tmp_path: Path):
    texts = [{"prompt": text, "token_ids": [1], "logprobs": [0.0]} for text in ("a", "b", "a")]
    ids = read(save(tmp_path / "mine.parquet", texts), "trajectory_id")["trajectory_id"].to_pylist()
    assert ids[0].split("/")[0] == ids[2].split("/")[0] != ids[1].split("/")[0]
    assert [name.split("/")[1] for name in ids] == ["0", "1", "2"]


def test_a_question_without_a_prompt_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="prompt_token_ids, which question_id is derived from, contains a null: row 2"):
        read(save(tmp_path / "mine.parquet", [*rows(2), {**rows()[2], "prompt_token_ids": None}]), "question_id")


def test_derived_ids_continue_across_files_and_the_fingerprint_depends_on_it(tmp_path: Path):
    for name in ("a", "b"):
        save(tmp_path / f"{name}.parquet", rows())
    artefact = open_artefact(tmp_path, TRAJECTORIES)
    ids = artefact.read_all(["trajectory_id"])["trajectory_id"].to_pylist()
    assert [name.split("/")[1] for name in ids] == list("012345")
    first, second = (artefact.fingerprint(part) for part in artefact.parts)
    assert first != second


def test_the_fingerprint_is_the_digest_of_the_bytes(tmp_path: Path):
    def fingerprint() -> str:
        return open_artefact(path, TRAJECTORIES).fingerprint()

    path = save(tmp_path / "mine.parquet", rows())
    before = fingerprint()
    assert before == hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    save(path, [*rows(2), {**rows()[2], "reward": 0}])
    assert fingerprint() != before
    save(path, rows())
    assert fingerprint() == before


def test_the_types_of_other_writers_are_cast(tmp_path: Path):
    wide = pa.table(
        {
            "trajectory_id": pa.array([10, 11]),
            "question_id": pa.array(["x", "y"]).dictionary_encode(),
            "prompt_token_ids": pa.array([[1], [2]], pa.list_(pa.int64(), 1)),
            "token_ids": pa.array([[1, 2], []], pa.large_list(pa.int64())),
            "logprobs": pa.array([[-0.5, -0.25], []], pa.list_(pa.float64())),
            "reference": pa.array(["1", "2"], pa.large_string()),
            "reward": pa.array([True, False]),
            "answer": pa.nulls(2),
        }
    )
    table = read(save(tmp_path / "mine.parquet", wide))
    assert table.schema == TRAJECTORIES.arrow
    assert table["trajectory_id"].to_pylist() == ["10", "11"]
    assert table["reward"].to_pylist() == [1.0, 0.0]
    assert table["logprobs"].to_pylist() == [[-0.5, -0.25], []]


def test_rows_of_spo_are_unchanged_after_a_round_trip_through_pandas(tmp_path: Path):
    trajectories(12).to_pandas().to_parquet(tmp_path / "mine.parquet")
    table = read(tmp_path / "mine.parquet")
    assert table.to_pylist() == trajectories(12).to_pylist()


def test_only_the_requested_columns_are_required(tmp_path: Path):
    path = save(tmp_path / "mine.parquet", [{"token_ids": [1], "logprobs": [0.0], "trajectory_id": "a"}])
    assert read(path, "trajectory_id", "token_ids", "logprobs").num_rows == 1
    with pytest.raises(UserError, match=r"lacks the columns question_id, reward .*found: token_ids, logprobs, traj"):
        read(path, "question_id", "reward", "token_ids")
    assert read(path, "depth", "answer").to_pylist() == [{"depth": 0, "answer": None}]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"token_ids": None}, "token_ids contains a null: row 1"),
        ({"token_ids": [5, None]}, "token_ids contains a null: row 1"),
        ({"token_ids": [5, -1]}, "negative id: row 1"),
        ({"token_ids": [5, 2**31]}, "column token_ids .*must be list"),
        ({"token_ids": [5]}, "differ in length: row 1"),
        ({"logprobs": [-0.5, 0.7]}, "at most 0.*row 1"),
        ({"logprobs": [-0.5, float("nan")]}, "finite.*row 1"),
        ({"reference": None}, "reference contains a null: row 1"),
        ({"finish_reason": "eos"}, "finish_reason must be one of stop, length, segment: row 1"),
    ],
)
def test_a_wrong_value_is_named_with_its_row(tmp_path: Path, change: dict[str, Any], problem: str):
    content = [{**row, "finish_reason": "stop"} for row in rows()]
    content[1] = {**content[1], **change}
    with pytest.raises(UserError, match=problem):
        read(save(tmp_path / "mine.parquet", content))


def test_a_type_that_does_not_cast_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"column logprobs of .*mine\.parquet must be list<"):
        read(save(tmp_path / "mine.parquet", [{**row, "logprobs": "[-0.5, 0.0]"} for row in rows()]))


def test_the_parent_of_a_node_has_the_finish_reason_segment(tmp_path: Path):
    content = [
        {**row, "trajectory_id": name, "parent_id": parent, "reward": reward}
        for row, name, parent, reward in zip(rows(), "abc", (None, "a", "a"), (None, 1.0, 0.0), strict=True)
    ]
    table = read(save(tmp_path / "mine.parquet", content), "trajectory_id", "parent_id", "finish_reason", "reward")
    assert table["finish_reason"].to_pylist() == ["segment", "stop", "stop"]


def test_a_missing_finish_reason_is_stop_and_a_reward_may_be_null(tmp_path: Path):
    content = [
        {**row, "finish_reason": reason, "reward": reward}
        for row, reason, reward in zip(rows(), [None, "segment", "stop"], [1.0, None, None], strict=True)
    ]
    table = read(save(tmp_path / "mine.parquet", content), "finish_reason", "reward")
    assert table.to_pydict() == {"finish_reason": ["stop", "segment", "stop"], "reward": [1.0, None, None]}


def test_ids_must_be_unique_within_a_file_and_across_files(tmp_path: Path):
    def named(*names: str) -> list[dict[str, Any]]:
        return [{**row, "trajectory_id": name} for row, name in zip(rows(), names, strict=True)]

    save(tmp_path / "one" / "a.parquet", named("x/0", "x/1", "x/0"))
    save(tmp_path / "two" / "a.parquet", named("x/0", "x/1", "x/2"))
    save(tmp_path / "two" / "b.parquet", named("y/0", "x/1", "y/2"))
    save(tmp_path / "three" / "a.parquet", [{**row, "trajectory_id": n} for n, row in enumerate(rows())])
    save(tmp_path / "three" / "b.parquet", named("2", "3", "4"))
    with pytest.raises(UserError, match="'2'"):
        read(tmp_path / "three", "token_ids")
    with pytest.raises(UserError, match=r"x/0.*row 0 of .*a\.parquet and in row 2 of .*a\.parquet"):
        read(tmp_path / "one", "token_ids")
    with pytest.raises(UserError, match=r"x/1.*row 1 of .*a\.parquet and in row 1 of .*b\.parquet"):
        read(tmp_path / "two", "token_ids")


def test_foreign_cutpoints_require_all_columns(tmp_path: Path):
    path = tmp_path / "cuts.parquet"
    pandas.DataFrame({"trajectory_id": ["a"], "segment_index": [0], "start": [0], "cutpoints": [[0]]}).to_parquet(path)
    artefact: Artefact = open_artefact(path)
    assert artefact.schema == CUTPOINTS
    with pytest.raises(UserError, match="lacks the column end of cutpoints"):
        artefact.read_all(CUTPOINTS.names)


def test_an_unknown_table_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="is not a table of spo: its columns are a"):
        open_artefact(save(tmp_path / "x.parquet", [{"a": 1}]))


def test_an_empty_foreign_file_is_an_empty_table(tmp_path: Path):
    path = save(tmp_path / "mine.parquet", pa.Table.from_pylist(rows()).slice(0, 0))
    assert read(path).num_rows == 0
