"""Where rows may come from, in which order they come, and what is said when they cannot be had."""

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
from stages.tasks.data import Data, open_data

ROWS = [
    {"question": "Two ducks and three ducks?", "answer": "2 + 3 = <<2+3=5>>5 ducks.\nAll are here.\n#### 5"},
    {"question": "How much for 1,000 at $67.50?", "answer": "It is $<<1000*67.5=67500>>67,500\n#### 67,500"},
]


def everything(there: Sequence[str], where: str) -> Sequence[str]:
    return there


def rows(data: Data, split: Split = "train") -> list[dict]:
    return [row for _, row in data.rows(split, everything)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory with train.jsonl, validation.csv and test.parquet of the same rows."""
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "test.parquet")
    cells = ("\n".join(f'"{row["question"]}","{row["answer"]}"' for row in ROWS)).replace("\n####", "\n####")
    (tmp_path / "validation.csv").write_text("﻿question,answer\n" + cells + "\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_every_kind_of_file_gives_the_same_rows(data: Path, split: Split):
    placed = open_data(str(data), "any").rows(split, everything)
    assert [row for _, row in placed] == ROWS
    assert [where.rpartition(" row ")[2] for where, _ in placed] == ["0", "1"]


def test_only_the_chosen_columns_are_read_and_a_row_that_lacks_one_has_none(data: Path):
    (data / "train.jsonl").write_text('{"a": 1, "b": [2]}\n{"b": 3}\n')
    placed = open_data(str(data), "any").rows("train", lambda there, where: ["a"])
    assert [row for _, row in placed] == [{"a": 1}, {"a": None}]
    assert [list(row) for _, row in open_data(str(data), "any").rows("test", lambda there, where: there[:1])] == [
        ["question"],
        ["question"],
    ]


def test_a_file_named_after_a_split_serves_that_split_and_any_other_serves_all(data: Path):
    train = open_data(str(data / "train.jsonl"), "any")
    assert rows(train) == ROWS
    with pytest.raises(UserError, match="no test split"):
        rows(train, "test")
    mine = (data / "train.jsonl").rename(data / "training_ducks.jsonl")
    assert rows(open_data(str(mine), "any"), "test") == ROWS


def test_parts_as_the_hub_names_them_are_read_in_order(tmp_path: Path):
    for i, row in enumerate(ROWS):
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / f"train-0000{i}-of-00002.parquet")
    assert rows(open_data(str(tmp_path), "any")) == ROWS


def test_a_directory_of_one_directory_per_task_serves_each(data: Path):
    home = data / "ducks"
    home.mkdir()
    (home / "train.jsonl").write_text('{"question": "?"}')
    assert rows(open_data(str(data), "ducks")) == [{"question": "?"}]
    assert rows(open_data(str(data), "geese")) == ROWS


def test_the_digest_is_that_of_the_bytes(data: Path):
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
        ("train.jsonl", b'{"a": "\\ud83d\\ude00"}\n{"a": "\\ud83d"}', "line 2 has half a character"),
        ("train.parquet", b"PAR1 torn", "train.parquet cannot be read as Parquet"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_place(tmp_path: Path, name: str, content: bytes, problem: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(problem)):
        rows(open_data(str(tmp_path), "any"))


def test_a_csv_may_have_a_column_without_a_name_as_pandas_writes_its_index(tmp_path: Path):
    (tmp_path / "train.csv").write_text(",question\n0,How many ducks?\n")
    assert rows(open_data(str(tmp_path), "any")) == [{"": "0", "question": "How many ducks?"}]


def test_a_missing_split_names_the_files_looked_for(data: Path):
    (data / "validation.csv").unlink()
    with pytest.raises(UserError, match=re.escape("no validation split; looked for validation.*")) as raised:
        rows(open_data(str(data), "any"), "validation")
    assert "found train, test" in str(raised.value)


def test_data_that_is_not_there_is_told(tmp_path: Path):
    with pytest.raises(UserError, match=r"there is no file or directory \./nowhere"):
        open_data("./nowhere", "any")
    with pytest.raises(UserError, match=r"holds none of train, validation, test as .*, nor a directory ducks"):
        open_data(str(tmp_path), "ducks")
    (tmp_path / "train.txt").touch()
    with pytest.raises(UserError, match=r"neither \.parquet, \.jsonl, \.json nor \.csv"):
        open_data(str(tmp_path / "train.txt"), "any")
    with pytest.raises(UserError, match="subset and revision belong to data sets on the hub"):
        open_data(str(tmp_path), "any", revision="v1")


def test_a_hub_name_without_the_datasets_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=re.escape("pip install 'spo-cli[hub]'")):
        open_data("openai/gsm8k", "gsm8k")


def test_a_hub_name_that_cannot_be_reached_is_told_in_one_line():
    pytest.importorskip("datasets", reason="datasets is not installed (the extra `hub`)")
    with pytest.raises(UserError, match="data openai/gsm8k is neither a file here nor to be had") as raised:
        open_data("openai/gsm8k", "gsm8k")
    assert "\n" not in str(raised.value)


def test_a_hub_data_set_is_loaded_at_its_configuration_and_revision(monkeypatch: pytest.MonkeyPatch):
    """The hub is out of reach of tests: rows as `datasets` would hold them, everything behind that is real."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed (the extra `hub`)")
    splits = datasets.DatasetDict({split: datasets.Dataset.from_list(ROWS) for split in ("train", "test")})
    asked = []

    def load_dataset(*args: object, **options: object) -> object:
        asked.append((args, options))
        return splits

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = open_data("openai/gsm8k", "gsm8k", subset="main", revision="abc123")
    assert asked == [(("openai/gsm8k", "main"), {"revision": "abc123"})]
    assert rows(found, "test") == ROWS
    with pytest.raises(UserError, match=re.escape("no validation split")):
        rows(found, "validation")
    splits["train"] = datasets.Dataset.from_list(ROWS[:1])
    assert open_data("openai/gsm8k", "gsm8k").digest != found.digest
    assert asked[-1] == (("openai/gsm8k", None), {"revision": None})
    del splits["train"], splits["test"]
    splits["odd"] = datasets.Dataset.from_list(ROWS)
    with pytest.raises(UserError, match="none of the splits train, validation, test; found odd"):
        open_data("openai/gsm8k", "gsm8k")
