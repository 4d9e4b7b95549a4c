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
        ("train.jsonl", b"[1]", "line 1 must be a JSON object"),
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
