"""`spo grade`: verdicts on files of responses and on artefacts, suspicious ones first, and what is written of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spo_cli.app import main
from stages import grade
from stages.core.errors import UserError
from tests.chains import rows, sample

ROWS = [
    {"response": r"So it is \boxed{18}.", "answer": "18"},
    {"response": "So it is 18", "answer": "9 * 2\n#### 18"},
    {"response": r"I think \boxed{17}", "answer": "18"},
    {"response": "", "answer": "3"},
]


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(records))
    return path


def graded(path: Path, **options: Any) -> grade.Grades:
    return grade.run(grade.Config(responses=path, **options))


def test_a_file_is_graded_with_reasons_and_the_suspicious_first(tmp_path: Path):
    found = graded(write(tmp_path / "r.json", ROWS), grader="number", out=tmp_path / "new" / "out.parquet")
    assert (found.task, found.counts) == ("custom", {"right": 2, "wrong": 1, "no answer": 1})
    assert [(one.row, one.label, str(one.verdict.place)) for one in found.rows] == [
        (1, "right", "last number"),
        (0, "right", "last box"),
        (2, "wrong", "last box"),
        (3, "no answer", "nowhere"),
    ]
    assert found.rows[0].suspicion == "right, but read from the last number"
    written = pq.read_table(tmp_path / "new" / "out.parquet").to_pylist()
    assert [row["row"] for row in written] == [0, 1, 2, 3]
    assert written[2] | {"steps": []} == {
        "row": 2,
        "id": None,
        "response": r"I think \boxed{17}",
        "reference": "18",
        "verdict": "wrong",
        "reward": 0.0,
        "answer": "17",
        "stated": "17",
        "place": "last box",
        "reason": "different value",
        "suspicion": "",
        "steps": [],
    }


def test_a_right_looking_response_without_reward_is_suspicious(tmp_path: Path):
    found = graded(write(tmp_path / "r.json", [ROWS[0], ROWS[1] | {"answer": "18"}]), grader="exact")
    assert found.rows[0].suspicion == "the response ends with the reference, and earns nothing"


def test_columns_are_named_and_fields_have_dotted_names(tmp_path: Path):
    record = {"out": r"\boxed{2}", "response": "another column", "gold": "3", "reward_model": {"ground_truth": "2"}}
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "r.parquet")
    assert graded(tmp_path / "r.parquet", response_column="out").counts == {"right": 1}
    assert graded(tmp_path / "r.parquet", response_column="out", answer_column="gold").counts == {"wrong": 1}
    assert graded(tmp_path / "r.parquet", response_column="out", task_arg=("answer=gold",)).counts == {"wrong": 1}


@pytest.mark.parametrize(
    "record",
    [
        {"text": "It is 5.", "answer": 5},
        {"prompt": "2 + 3", "completion": "It is 5.", "answer": 5.0},
        {"completion": [{"role": "assistant", "content": "It is 5."}], "ground_truth": ["5"]},
        {"completion": [{"role": "assistant", "content": [{"type": "text", "text": "It is 5."}]}], "answer": "５"},
        {"response": "It is 5.", "reward_model": {"ground_truth": "5", "style": "rule"}},
        {"doc_id": 0, "target": "2 + 3\n#### 5", "resps": [["It is 5."]], "filtered_resps": ["5"]},
        {"response": "答案是５。", "answer": "5"},
    ],
)
def test_files_of_other_tools_are_read(tmp_path: Path, record: dict[str, Any]):
    assert graded(write(tmp_path / "r.json", [record]), grader="number").counts == {"right": 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.json", '[{"text": "5", "answer": "5"},]', "is not JSON"),
        ("r.json", "[1, 2]", "row 0 must be a JSON object; got 1"),
        ("r.json", "[]", "has no rows"),
        ("r.jsonl", '{"text": "5", "answer": "5"}\n{"text":', "line 2 is not JSON"),
        ("r.jsonl", '{"text": "5", "answer": NaN}', "column answer must be a text or a number; got nan"),
        ("r.jsonl", '{"text": "5", "answer": null}', "must be a non-empty text; got None"),
        ("r.jsonl", '{"text": "5", "answer": ""}', "must be a non-empty text; got ''"),
        ("r.jsonl", '{"text": "5", "answer": ["5", "7"]}', "column answer must hold one answer"),
        ("r.jsonl", '{"text": "5", "answer": {"value": "5"}}', "must be a text or a number; got {'value'"),
        ("r.jsonl", '{"text": null, "answer": "5"}', "column text must be a text; got None"),
        ("r.jsonl", '{"text": [{"role": "user", "content": "5"}], "answer": "5"}', "got the role user"),
        ("r.csv", "text,answer\n", "has no rows"),
        ("r.csv", 'text,answer\n"5,5\n', "is not CSV"),
        ("r.csv", "text,answer\n5,5,5\n", "row 0 has more fields than the header names"),
        ("r.csv", "text,answer,answer\n5,5,5\n", "names the column answer twice"),
        ("r.csv", "text;answer\n5;5\n", "has no column text or .*; found text;answer"),
        ("r.parquet", "PAR1", "cannot be read as Parquet"),
    ],
)
def test_broken_data_is_reported_in_one_line(tmp_path: Path, name: str, content: str, message: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        graded(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_reward_function_gets_the_columns_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "rewards_to_try.py").write_text(
        "def score(completions, answer, weight):\n"
        "    return [None if not text else w * (a in text) for text, a, w in zip(completions, answer, weight)]\n"
    )
    records = [row | {"weight": 0.5} for row in (ROWS[0], ROWS[3])]
    found = graded(write(tmp_path / "r.json", records), task_arg=("reward=rewards_to_try:score",))
    assert found.counts == {"reward": 1, "not gradable": 1}
    assert [(one.row, one.verdict.reward) for one in found.rows] == [(1, None), (0, 0.5)]
    with pytest.raises(UserError, match="row 0 has no column weight, which the reward function takes"):
        graded(write(tmp_path / "r.json", ROWS), task_arg=("reward=rewards_to_try:score",))


@pytest.mark.parametrize("options", [{}, {"tree": "2-2", "num_generations": None, "segment_tokens": 4}])
def test_trajectories_are_graded_by_their_own_task(policy: Path, tmp_path: Path, options: dict[str, Any]):
    sample(tmp_path / "t", policy, temperature=0.8, **options)
    found = graded(tmp_path / "t")
    assert found.task == "arithmetic"
    by_id = {one.id: one.verdict for one in found.rows}
    leaves = [row for row in rows(tmp_path / "t") if row["finish_reason"] != "segment"]
    assert len(by_id) == len(leaves)
    for row in leaves:
        assert by_id[row["trajectory_id"]].answer == row["answer"]
        if row["finish_reason"] == "stop":
            assert by_id[row["trajectory_id"]].reward == row["reward"]


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        (ROWS, {"grader": "mths"}, "--task-arg grader must be one of maths, number, exact; got 'mths'. Did you mean"),
        (
            ROWS,
            {"response_column": "respons"},
            "has no column respons; found response, answer. Did you mean 'response'",
        ),
        (ROWS, {"answer_column": "answers"}, "has no column answers; found response, answer. Did you mean 'answer'"),
        (ROWS, {"grader": "maths", "task_arg": ("grader=exact",)}, "--grader and --task-arg grader say the same"),
        ([{"out": "x"}], {}, "has no column text or response or .* Name yours with --response-column"),
        ([{"text": "x"}], {}, "row 0 has no column answer or .* Name yours with --answer-column"),
        ([{"text": 5, "answer": "5"}], {}, "row 0: column text must be a text; got 5"),
        (
            [{"text": "5", "answer": "five"}],
            {"grader": "number"},
            "row 0: the answer in column answer must be a number",
        ),
        (ROWS, {"task": "arithmetik"}, "--task must be one of .* Did you mean 'arithmetic'"),
    ],
)
def test_a_mistake_is_reported_in_one_line(
    tmp_path: Path, records: list[dict[str, Any]], options: dict[str, Any], message: str
):
    with pytest.raises(UserError, match=message):
        graded(write(tmp_path / "r.json", records), **options)


def test_what_is_neither_a_file_of_rows_nor_an_artefact_of_responses_is_refused(tmp_path: Path):
    (tmp_path / "r.txt").write_text("18")
    with pytest.raises(UserError, match=r"r\.txt must end in one of \.parquet, \.jsonl, \.json, \.csv"):
        graded(tmp_path / "r.txt")
    with pytest.raises(UserError, match="does not exist"):
        graded(tmp_path / "nowhere.jsonl")


def test_the_command_prints_a_table_an_explanation_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write(tmp_path / "r.json", ROWS)

    def printed(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["grade", str(path), "--grader", "number", *words])
        assert ended.value.code == 0
        return capsys.readouterr().out

    text = printed("--rows", "1")
    head = "spo grade: 4 responses, task custom: right 2 (50%), wrong 1 (25%), no answer 1 (25%), suspicious 1"
    assert text.splitlines()[0] == head
    assert "3 more: --rows N shows more of them" in text
    assert "  read from  last number\n" in printed("--explain")
    found = json.loads(printed("--json"))
    assert (found["counts"]["right"], len(found["rows"]), found["rows"][0]["row"]) == (2, 4, 1)
