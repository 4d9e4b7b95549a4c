"""Tasks over rows of data: public data sets without a mapping, other data by its columns, and errors in rows."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.core.errors import UserError
from stages.tasks import Split, Task, open_task
from stages.tasks.datasets import DATASETS
from tests.tasks.test_data import ROWS

REAL: dict[str, dict[Split, int]] = {
    "gsm8k": {"train": 7473, "test": 1319},
    "math": {"train": 7498, "test": 5000},  # two rows with an empty box are skipped
    "math12k": {"train": 11998},
    "math500": {"test": 500},
    "aime24": {"test": 30},
    "amc23": {"test": 40},
    "olympiadbench": {"test": 675},
    "minerva_math": {"test": 272},
    "college_math": {"test": 2818},
}


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def open_rows(tmp_path: Path, *rows: dict[str, Any], task: str = "custom", args: tuple[str, ...] = ()) -> Task:
    return open_task(task, write(tmp_path / "mine.jsonl", *rows), args)


@pytest.mark.parametrize("name", REAL)
def test_public_data_sets_need_no_column_mapping(shared: Path, name: str):
    task = open_task(name, str(shared / "data"))
    for split, count in REAL[name].items():
        questions = task.questions(split)
        assert len(questions) == count
        assert len({question.id for question in questions}) == count
        assert all(question.prompt and question.reference for question in questions)
        assert task.digest == open_task(name, str(shared / "data" / name)).digest


def test_references_subjects_and_levels_come_from_the_data(shared: Path):
    data = str(shared / "data")
    first = open_task("math500", data).questions("test")[0]
    assert first.id == "math500-test/precalculus/807.json"
    assert first.reference == r"\left( 3, \frac{\pi}{2} \right)"
    assert first.metadata == {"subject": "Precalculus", "level": "2"}
    by_id = {question.id.removeprefix("math-"): question for question in open_task("math", data).questions("test")}
    for question in open_task("math500", data).questions("test"):  # an answer column here, a box in the solution there
        other = by_id[question.id.removeprefix("math500-")]
        assert (other.reference, other.metadata) == (question.reference, question.metadata)
    assert open_task("amc23", data).questions("test")[0].reference == "27"
    assert open_task("olympiadbench", data).questions("test")[0].metadata == {"subject": "Combinatorics"}
    assert open_task("gsm8k", data).questions("test")[0].metadata == {}


def test_the_only_split_of_a_benchmark_is_its_test_split(tmp_path: Path):
    data = write(tmp_path / "train.jsonl", {"problem": "1 + 1?", "answer": 2})
    (question,) = open_task("aime24", data).questions("test")
    assert question.id == "aime24-test-0"
    with pytest.raises(UserError, match="no test split"):
        open_task("math", data).questions("test")


def test_hub_loads_the_public_copy_of_the_data_set(monkeypatch: pytest.MonkeyPatch):
    """Tests cannot reach the hub: `load_dataset` returns rows as it would; the code that reads them is real."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed (the extra `hub`)")
    calls = []

    def load_dataset(*args: object, **options: object) -> object:
        calls.append((args, options))
        rows = datasets.Dataset.from_list([{"question": "1 + 1?", "final_answer": ["2"], "subfield": "Algebra"}])
        return datasets.DatasetDict({"train": rows})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (question,) = open_task("olympiadbench", "hub", ["revision=abc"]).questions("test")
    assert (question.reference, question.metadata) == ("2", {"subject": "Algebra"})
    open_task("olympiadbench", "Hothan/OlympiadBench", ["subset=OE_TO_maths_zh_CEE"])
    open_task("olympiadbench", "me/mine")
    assert calls == [
        (("Hothan/OlympiadBench", "OE_TO_maths_en_COMP"), {"revision": "abc"}),
        (("Hothan/OlympiadBench", "OE_TO_maths_zh_CEE"), {"revision": None}),
        (("me/mine", None), {"revision": None}),
    ]
    with pytest.raises(UserError, match="no public copy of custom is known"):
        open_task("custom", "hub")


def test_columns_can_be_named_for_every_role(tmp_path: Path):
    row = {"q": "1 + 1?", "a": "2", "s": "It is 2.", "n": 17, "topic": "sums", "hard": 1, "answer": "wrong"}
    args = ("question=q", "answer=a", "solution=s", "id=n", "subject=topic", "level=hard")
    (question,) = open_rows(tmp_path, row, args=args).questions("train")
    assert question.id == "custom-17"
    assert (question.prompt, question.reference, question.solution) == ("1 + 1?", "2", " It is 2.")
    assert question.metadata == {"subject": "sums", "level": "1"}


def test_columns_with_the_usual_names_are_found(tmp_path: Path):
    (question,) = open_rows(tmp_path, {"prompt": "1 + 1?", "solution": r"So \boxed{2}."}).questions("train")
    assert (question.prompt, question.reference, question.solution) == ("1 + 1?", "2", r" So \boxed{2}.")


def test_a_row_of_gsm8k_becomes_a_question_with_a_reference_and_a_solution(tmp_path: Path):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    first, second = open_task("gsm8k", str(tmp_path)).questions("train")
    assert first.id == "gsm8k-train-0"
    assert first.prompt == "Two ducks and three ducks?"
    assert first.solution == " 2 + 3 = 5 ducks.\nAll are here.\n#### 5"
    assert (first.reference, second.reference) == ("5", "67,500")


def test_named_columns_and_bare_numbers_are_read(tmp_path: Path):
    file = tmp_path / "mine.jsonl"
    file.write_text('{"q": "1 + 1?", "a": 2}\n\n{"q": "A line\u2028break?", "a": "3"}\n', encoding="utf-8")
    first, second = open_task("gsm8k", str(file), ["question=q", "answer=a"]).questions("train")
    assert (first.prompt, first.reference, first.solution) == ("1 + 1?", "2", None)
    assert second.prompt == "A line\u2028break?"


def test_a_chat_is_split_into_the_last_message_and_its_history(tmp_path: Path):
    chat = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1 + 1?"}]
    (question,) = open_rows(tmp_path, {"prompt": chat, "answer": "2"}).questions("train")
    assert (question.prompt, question.history) == ("1 + 1?", (("system", "Add."),))
    problem = "row 0: column prompt must hold messages .*, the last one with the role user; got the roles system"
    with pytest.raises(UserError, match=problem):
        open_rows(tmp_path, {"prompt": chat[:1], "answer": "2"}).questions("train")


def test_the_parts_of_a_message_are_joined(tmp_path: Path):
    parts = [{"type": "text", "text": "1 + "}, {"type": "text", "text": "1?"}]
    chat = [{"role": "system", "content": parts[:1]}, {"role": "user", "content": parts}]
    (question,) = open_rows(tmp_path, {"prompt": chat, "answer": "2"}).questions("train")
    assert (question.prompt, question.history) == ("1 + 1?", (("system", "1 + "),))


def test_rows_as_verl_writes_them_are_read_without_options(tmp_path: Path):
    row = {
        "data_source": "openai/gsm8k",
        "prompt": [{"content": "1 + 1?", "role": "user"}],
        "ability": "math",
        "reward_model": {"ground_truth": "2", "style": "rule"},
        "extra_info": {"index": 7, "split": "train"},
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "train.parquet")
    (question,) = open_task("custom", str(tmp_path), ["grader=number"]).questions("train")
    assert (question.prompt, question.reference, question.id) == ("1 + 1?", "2", "custom-train-0")
    named = open_task("custom", str(tmp_path), ["answer=reward_model.ground_truth", "id=extra_info.index"])
    assert named.questions("train")[0].id == "custom-7"
    with pytest.raises(UserError, match=r"no column reward_model.truth; .*Did you mean 'reward_model.ground_truth'\?"):
        open_task("custom", str(tmp_path), ["answer=reward_model.truth"]).questions("train")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([0.1, 27, 1e-7], pa.float64()).cast(pa.float32()), ["0.1", "27", "0.0000001"]),
        (pa.array([Decimal("0.10"), Decimal("27.00"), Decimal("-3.25")], pa.decimal128(9, 2)), ["0.1", "27", "-3.25"]),
        (pa.array([12345678901234567, 0, -1]), ["12345678901234567", "0", "-1"]),
        (pa.array([1e22, -0.0, 2.5]), ["1" + "0" * 22, "0", "2.5"]),
    ],
)
def test_numbers_of_every_type_become_their_digits(tmp_path: Path, values: pa.Array, expected: list[str]):
    pq.write_table(pa.table({"question": ["a", "b", "c"], "answer": values}), tmp_path / "train.parquet")
    questions = open_task("custom", str(tmp_path), ["grader=number"]).questions("train")
    assert [question.reference for question in questions] == expected


def test_a_grader_is_selected_by_name(tmp_path: Path):
    row = {"question": "Which?", "answer": "B"}
    exact = open_rows(tmp_path, row, args=("grader=exact",))
    assert [exact.verify(text, "B").reward for text in (r"\boxed{B}", "<think>A</think> B", "C", "A or B", "")] == [
        *(1.0, 1.0, 0.0, 0.0, 0.0)
    ]
    assert exact.verify("", "B").answer is None
    number = open_rows(tmp_path, row | {"answer": "2"}, args=("grader=number",))
    assert number.verify("1 + 1 = 2", "2.0").reward == 1.0
    maths = open_rows(tmp_path, row | {"answer": "2"})
    assert maths.verify(r"\boxed{\frac{4}{2}}", "2").reward == 1.0


def test_options_and_data_that_change_questions_or_verdicts_change_the_digest(tmp_path: Path):
    row = {"question": "1 + 1?", "answer": "2"}
    tasks = [
        open_rows(tmp_path, row),
        open_rows(tmp_path, row, args=("grader=number",)),
        open_rows(tmp_path, row, args=("grader=exact",)),
        open_rows(tmp_path, row, task="math"),
        open_rows(tmp_path, row, row),
    ]
    assert len({task.digest for task in tasks}) == len(tasks)
    assert open_rows(tmp_path, row).digest == tasks[0].digest


GOOD = {"question": "1 + 1?", "answer": "2"}


@pytest.mark.parametrize(
    ("rows", "args", "problem"),
    [
        ([], (), "task has no questions"),
        ([{"question": "?"}], (), "reward_model.ground_truth or ground_truth or target; found question. Name yours"),
        ([{"text": "?", "answer": 1}], (), "has no column question or problem or prompt; found text, answer."),
        ([GOOD], ("question=q",), "mine.jsonl has no column q; found question, answer"),
        ([GOOD], ("answer=answr",), "has no column answr; found question, answer. Did you mean 'answer'?"),
        (
            [{"prompt": [{"role": "user", "content": [{"type": "image_url", "text": None}]}], "answer": 1}],
            (),
            "row 0: column prompt must hold messages whose content is text, or parts of type text; got [{'type': 'im",
        ),
        ([GOOD], ("id=n", "level=l"), "has no column n and no l; found question, answer"),
        ([GOOD, {"question": "", "answer": 2}], (), "row 1: column question must be a non-empty text; got ''"),
        ([GOOD, {"answer": 2}], (), "row 1: column question must be a non-empty text; got None"),
        ([{"question": 3, "answer": "3"}], (), "row 0: column question must be a non-empty text; got 3"),
        (
            [GOOD, {"question": "?"}],
            (),
            "row 1: the answer in column answer must be a non-empty text; got None",
        ),
        ([{"question": "?", "answer": " "}], (), "row 0: the answer in column answer must be"),
        (
            [{"question": "?", "answer": "two"}],
            ("grader=number",),
            "row 0: the answer in column answer must be a number",
        ),
        ([{"question": "?", "answer": float("nan")}], (), "column answer must be a text or a number; got nan"),
        ([{"question": "?", "answer": True}], (), "row 0: column answer must be a text or a number; got True"),
        ([GOOD | {"n": 1}, GOOD | {"n": 1}], ("id=n",), "row 1 has the same id as "),
    ],
)
def test_an_error_in_the_data_names_its_row(tmp_path: Path, rows: list, args: tuple, problem: str):
    with pytest.raises(UserError, match=re.escape(problem)):
        open_rows(tmp_path, *rows, args=args).questions("train")


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["grader=mathematics"], "--task-arg grader must be one of maths, number, exact; got 'mathematics'"),
        (["grader=Numbers"], "one of maths, number, exact; got 'Numbers'. Did you mean 'number'?"),
        (["anwser=gold"], "subset, revision. Did you mean 'answer'?"),
        (["grader=maths", "reward=a:b"], "--task-arg grader and --task-arg reward exclude each other"),
        (["template={question}"], "task custom has no option 'template'; its options and their defaults: question, "),
    ],
)
def test_an_invalid_option_is_an_error(args: list[str], problem: str):
    with pytest.raises(UserError, match=re.escape(problem)):
        open_task("custom", None, args)


@pytest.mark.parametrize("name", DATASETS)
def test_without_data_a_task_verifies_but_has_no_questions(name: str):
    task = open_task(name)
    assert task.verify(r"So it is \boxed{18}.", "18").reward == 1.0
    with pytest.raises(UserError, match=f"task {name} needs --data"):
        task.questions("train")
