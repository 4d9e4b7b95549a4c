"""The sources of rows, their order, and the errors for rows that cannot be read."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.core.errors import UserError
from stages.tasks import Split
from stages.tasks.data import DataSplits, open_data

ROWS = [
    {"question": "Two ducks and three ducks?", "answer": "2 + 3 = <<2+3=5>>5 ducks.\nAll are here.\n#### 5"},
    {"question": "How much for 1,000 at $67.50?", "answer": "It is $<<1000*67.5=67500>>67,500\n#### 67,500"},
]


def all_columns(available: Sequence[str], location: str) -> Sequence[str]:
    return available


def rows(data: DataSplits, split: Split = "train") -> list[dict]:
    return [row for _, row in data.rows(split, all_columns)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a directory with train.jsonl, validation.csv and test.parquet, which have the same rows."""
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "test.parquet")
    cells = ("\n".join(f'"{row["question"]}","{row["answer"]}"' for row in ROWS)).replace("\n####", "\n####")
    (tmp_path / "validation.csv").write_text("﻿question,answer\n" + cells + "\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_all_file_formats_give_the_same_rows(data: Path, split: Split):
    located = open_data(str(data), "any").rows(split, all_columns)
    assert [row for _, row in located] == ROWS
    assert [location.rpartition(" row ")[2] for location, _ in located] == ["0", "1"]


def test_only_the_chosen_columns_are_read_and_a_missing_value_is_none(data: Path):
    (data / "train.jsonl").write_text('{"a": 1, "b": [2]}\n{"b": 3}\n')
    located = open_data(str(data), "any").rows("train", lambda available, location: ["a"])
    assert [row for _, row in located] == [{"a": 1}, {"a": None}]
    located = open_data(str(data), "any").rows("test", lambda available, location: available[:1])
    assert [list(row) for _, row in located] == [["question"], ["question"]]


def test_a_file_named_after_a_split_has_that_split_only_and_any_other_file_has_all(data: Path):
    train = open_data(str(data / "train.jsonl"), "any")
    assert rows(train) == ROWS
    with pytest.raises(UserError, match="no test split"):
        rows(train, "test")
    mine = (data / "train.jsonl").rename(data / "training_ducks.jsonl")
    assert rows(open_data(str(mine), "any"), "test") == ROWS


def test_several_files_per_split_as_the_hub_names_them_are_read_in_order(tmp_path: Path):
    for i, row in enumerate(ROWS):
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / f"train-0000{i}-of-00002.parquet")
    assert rows(open_data(str(tmp_path), "any")) == ROWS


def test_a_subdirectory_with_the_name_of_the_task_is_preferred(data: Path):
    home = data / "ducks"
    home.mkdir()
    (home / "train.jsonl").write_text('{"question": "?"}')
    assert rows(open_data(str(data), "ducks")) == [{"question": "?"}]
    assert rows(open_data(str(data), "geese")) == ROWS


def test_the_digest_changes_with_the_bytes(data: Path):
    before = open_data(str(data), "any").digest
    assert open_data(str(data), "any").digest == before
    with (data / "train.jsonl").open("a") as file:
        file.write(json.dumps(ROWS[0]))
    assert open_data(str(data), "any").digest != before


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("train.jsonl", b'{"question": "3"}\n{oops', "line 2 is not JSON"),
        ("train.jsonl", b"[1]", "train.jsonl row 0 must be a JSON object; got 1"),
        ("train.json", b'[{"a": 1}, {"a": 2}', "train.json is not JSON"),
        ("train.json", b'{\n  "a": 1\n}', "expected one object per line, or one array of objects"),
        ("train.jsonl", b'{"question": "\xff"}', "not UTF-8"),
        ("train.csv", b"a,b\n1,2\n3,4,5\n", "row 1 has more fields than the header names"),
        ("train.csv", b'a,b\n"1,2\n', "is not CSV"),
        ("train.csv", b"a,b,a\n1,2,3\n", "train.csv names the column a twice; found a, b, a"),
        ("train.jsonl", b'{"a": "\\ud83d\\ude00"}\n{"a": "\\ud83d"}', "line 2 has an unpaired surrogate"),
        ("train.parquet", b"PAR1 torn", "train.parquet cannot be read as Parquet"),
    ],
)
def test_an_error_in_a_file_names_its_location(tmp_path: Path, name: str, content: bytes, problem: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(problem)):
        rows(open_data(str(tmp_path), "any"))


def test_a_json_file_may_be_one_array(tmp_path: Path):
    (tmp_path / "train.json").write_text(json.dumps(ROWS, indent=2))
    (tmp_path / "test.jsonl").write_text("\n " + json.dumps(ROWS))
    assert rows(open_data(str(tmp_path), "any")) == rows(open_data(str(tmp_path), "any"), "test") == ROWS
    (tmp_path / "train.json").write_text("[]")
    assert rows(open_data(str(tmp_path), "any")) == []


VERL = [
    {"prompt": [{"role": "user", "content": f"{i}?"}], "reward_model": {"style": "rule", "ground_truth": str(i)}}
    for i in range(2)
]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_field_of_a_struct_is_a_column_with_a_dotted_name(tmp_path: Path, suffix: str):
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(VERL), tmp_path / "train.parquet")
    else:
        (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, VERL)))
    seen = []

    def choose(available: Sequence[str], location: str) -> Sequence[str]:
        seen.extend(available)
        return ["reward_model.ground_truth", "prompt"]

    located = open_data(str(tmp_path), "any").rows("train", choose)
    assert [row["reward_model.ground_truth"] for _, row in located] == ["0", "1"]
    assert located[0][1]["prompt"] == VERL[0]["prompt"]
    assert seen == ["prompt", "reward_model", "reward_model.style", "reward_model.ground_truth"]


def test_a_name_with_a_dot_of_its_own_is_a_column(tmp_path: Path):
    records = [{"a.b": 1, "a": {"b": 2, "c.d": 3}}, {"a": None}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, records)))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "test.parquet")
    for split in ("train", "test"):
        located = open_data(str(tmp_path), "any").rows(split, lambda available, location: ["a.b", "a.c.d"])
        assert [row for _, row in located] == [{"a.b": 1, "a.c.d": 3}, {"a.b": None, "a.c.d": None}]


def test_short_floating_point_numbers_keep_their_decimals(tmp_path: Path):
    kinds = {"single": pa.float32(), "half": pa.float16(), "double": pa.float64()}
    columns = {name: pa.array([0.1, None, 67.5], pa.float64()).cast(kind) for name, kind in kinds.items()}
    columns["many"] = pa.array([[0.1, 0.2], [], None], pa.list_(pa.float32()))
    columns["inner"] = pa.array([{"x": 0.3}, None, {"x": None}], pa.struct([("x", pa.float32())]))
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    assert rows(open_data(str(tmp_path), "any")) == [
        {"single": 0.1, "half": 0.1, "double": 0.1, "many": [0.1, 0.2], "inner": {"x": 0.3}, "inner.x": 0.3},
        {"single": None, "half": None, "double": None, "many": [], "inner": None, "inner.x": None},
        {"single": 67.5, "half": 67.5, "double": 67.5, "many": None, "inner": {"x": None}, "inner.x": None},
    ]


def test_line_ends_within_a_field_of_a_csv_are_kept(tmp_path: Path):
    (tmp_path / "train.csv").write_bytes(b'question,answer\r\n"a\r\nb","c\nd"\r\n')
    assert rows(open_data(str(tmp_path), "any")) == [{"question": "a\r\nb", "answer": "c\nd"}]


def test_a_csv_may_have_a_column_without_a_name_as_pandas_writes_an_index(tmp_path: Path):
    (tmp_path / "train.csv").write_text(",question\n0,How many ducks?\n")
    assert rows(open_data(str(tmp_path), "any")) == [{"": "0", "question": "How many ducks?"}]


def test_the_error_for_a_missing_split_names_the_expected_files(data: Path):
    (data / "validation.csv").unlink()
    with pytest.raises(UserError, match=re.escape("no validation split; looked for validation.*")) as raised:
        rows(open_data(str(data), "any"), "validation")
    assert "found train, test" in str(raised.value)


def test_missing_data_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match=r"there is no file or directory \./nowhere"):
        open_data("./nowhere", "any")
    with pytest.raises(
        UserError,
        match=r"contains no directory ducks and no file train\.\*, validation\.\* or test\.\* with \* one of ",
    ):
        open_data(str(tmp_path), "ducks")
    (tmp_path / "train.txt").touch()
    with pytest.raises(
        UserError, match=r"train\.txt must end in one of \.parquet, \.jsonl, \.json, \.csv; got '\.txt'"
    ):
        open_data(str(tmp_path / "train.txt"), "any")
    with pytest.raises(UserError, match=r"subset and revision apply to data sets on the hub; .* is a local path"):
        open_data(str(tmp_path), "any", revision="v1")


def test_the_error_for_a_hub_name_without_the_datasets_package_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=re.escape("pip install 'spo-cli[hub]'")):
        open_data("openai/gsm8k", "gsm8k")


def test_the_error_for_an_unreachable_hub_is_one_line():
    pytest.importorskip("datasets", reason="datasets is not installed (the extra `hub`)")
    with pytest.raises(
        UserError, match="data openai/gsm8k is not a local file and cannot be loaded from the Hugging Face hub: "
    ) as raised:
        open_data("openai/gsm8k", "gsm8k")
    assert "\n" not in str(raised.value)


def test_a_hub_data_set_is_loaded_at_its_configuration_and_revision(monkeypatch: pytest.MonkeyPatch):
    """Tests cannot reach the hub: `load_dataset` returns rows as it would; the code that reads them is real."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed (the extra `hub`)")
    splits = datasets.DatasetDict({split: datasets.Dataset.from_list(ROWS) for split in ("train", "test")})
    calls = []

    def load_dataset(*args: object, **options: object) -> object:
        calls.append((args, options))
        return splits

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = open_data("openai/gsm8k", "gsm8k", subset="main", revision="abc123")
    assert calls == [(("openai/gsm8k", "main"), {"revision": "abc123"})]
    assert rows(found, "test") == ROWS
    with pytest.raises(UserError, match=re.escape("no validation split")):
        rows(found, "validation")
    splits["train"] = datasets.Dataset.from_list(ROWS[:1])
    assert open_data("openai/gsm8k", "gsm8k").digest != found.digest
    assert calls[-1] == (("openai/gsm8k", None), {"revision": None})
    del splits["train"], splits["test"]
    splits["odd"] = datasets.Dataset.from_list(ROWS)
    with pytest.raises(UserError, match="none of the splits train, validation, test; found odd"):
        open_data("openai/gsm8k", "gsm8k")
