"""A user's reward function: its arguments, its return value, and the errors for an invalid one."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.core.errors import Interrupted, UserError
from stages.shards.sharding import interruptible
from stages.tasks import Task, open_task

ROWS = [{"question": "1 + 1?", "answer": "2", "weight": 3}, {"question": "2 + 2?", "answer": "4", "weight": 5}]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a working directory with data.jsonl, in which tests write modules with reward functions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("my_rewards")]:
        del sys.modules[name]


def open_with_reward(body: str, module: str = "my_rewards", data: str | None = "data.jsonl") -> Task:
    """Return a task with the function `score` of a module with this source."""
    Path(f"{module}.py").write_text(body)
    sys.modules.pop(module, None)
    return open_task("custom", data, [f"reward={module}:score"])


def rewards(task: Task, texts: list[str]) -> list[float | None]:
    references = [question.reference for question in task.questions("train")]
    return [verdict.reward for verdict in task.verify_all(texts, references)]  # type: ignore[attr-defined]


def test_a_function_receives_completions_prompts_and_the_columns_that_it_names(directory: Path):
    task = open_with_reward(
        "def score(completions, prompts, answer, weight, bonus=0.5):\n"
        "    assert prompts == ['1 + 1?', '2 + 2?'] and isinstance(weight[0], int)\n"
        "    return [w * (gold in text) + bonus for text, gold, w in zip(completions, answer, weight)]\n"
    )
    assert rewards(task, ["it is 2", "it is 5"]) == [3.5, 0.5]
    assert json.loads(task.questions("train")[0].reference) == {"prompts": "1 + 1?", "answer": "2", "weight": 3}


def test_a_function_with_keyword_arguments_receives_all_columns(directory: Path):
    task = open_with_reward(
        "def score(completions, **columns):\n    return [float(len(columns)) for _ in completions]\n"
    )
    assert rewards(task, ["", ""]) == [4.0, 4.0]
    assert json.loads(task.questions("train")[1].reference) == {**ROWS[1], "prompts": "2 + 2?"}


def test_columns_that_json_lacks_become_numbers_and_iso_texts_and_fields_stay_in_their_columns(directory: Path):
    row = {
        "question": "1 + 1?",
        "price": Decimal("2.50"),
        "day": date(2026, 1, 2),
        "reward_model": {"ground_truth": "2"},
    }
    pq.write_table(pa.Table.from_pylist([row]), "data.parquet")
    body = "def score(completions, **columns):\n    return [1.0 for _ in completions]\n"
    (question,) = open_with_reward(body, data="data.parquet").questions("train")
    stored = {**row, "price": 2.5, "day": "2026-01-02", "prompts": "1 + 1?"}
    assert json.loads(question.reference) == stored


def test_none_is_ungradable_and_the_answer_is_the_last_box(directory: Path):
    task = open_with_reward(
        "def score(completions):\n    return [None if text == '' else True for text in completions]\n"
    )
    verdicts = [task.verify("", "{}"), task.verify(r"\boxed{7}", "{}")]
    assert [(verdict.answer, verdict.reward) for verdict in verdicts] == [(None, None), ("7", 1.0)]


def test_stored_references_are_enough_to_grade(directory: Path):
    """Trajectories store the columns, so a later stage needs the function but not the data."""
    text = "def score(completions, weight):\n    return [w / 10 for w in weight]\n"
    references = [question.reference for question in open_with_reward(text).questions("train")]
    assert open_with_reward(text, data=None).verify("", references[1]).reward == 0.5


def test_the_digest_changes_with_the_file_of_the_function(directory: Path):
    before = open_with_reward("def score(completions):\n    return [0.0] * len(completions)\n").digest
    assert open_with_reward("def score(completions):\n    return [0.0] * len(completions)\n").digest == before
    assert open_with_reward("def score(completions):\n    return [1.0] * len(completions)\n").digest != before


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (
            "    return [1 / (len(text) - 2) for text in completions]",
            "fails on the row {\"weight\": 5} with the completion 'no': ZeroDivisionError",
        ),
        ("    return [1.0]", "must return a list of 2 rewards, one per completion; got 1 values"),
        ("    return 1.0", "must return a list of 2 rewards, one per completion; got float 1.0"),
        ("    return ['1', '0']", "must return finite numbers or None; got '1' for the row {\"weight\": 3}"),
        ("    raise SystemExit(3)", "fails on the row {\"weight\": 3} with the completion 'yes': SystemExit: 3"),
        ("    return [10**400] * len(completions)", "must return finite numbers or None; got 1000"),
        ("    return [0, float('nan')]", 'must return finite numbers or None; got nan for the row {"weight": 5}'),
    ],
)
def test_an_error_names_the_function_and_the_row(directory: Path, body: str, problem: str):
    task = open_with_reward(f"def score(completions, weight):\n{body}\n")
    with pytest.raises(UserError, match=re.escape(f"--task-arg reward my_rewards:score {problem}")):
        rewards(task, ["yes", "no"])


def test_a_signal_interrupts_a_function_that_catches_every_exception(directory: Path):
    task = open_with_reward(
        "import os, signal\n"
        "def score(completions):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    except Exception:\n"
        "        pass\n"
        "    return [0.0] * len(completions)\n"
    )
    with pytest.raises(Interrupted, match="SIGTERM"), interruptible():
        rewards(task, ["yes", "no"])


def test_a_function_that_fails_only_on_the_whole_batch_is_an_error(directory: Path):
    task = open_with_reward(
        "def score(completions):\n    assert len(completions) < 2, 'one at a time'\n    return [0.0]\n"
    )
    with pytest.raises(UserError, match=r"my_rewards:score fails on .*: AssertionError: one at a time"):
        rewards(task, ["yes", "no"])


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("def score(answer):\n    return []\n", "my_rewards:score must take `completions`; found (answer)"),
        ("def score(completions, /):\n    return []\n", "must take its arguments by name"),
        ("score = 3\n", "score must be a function; found int"),
    ],
)
def test_a_function_with_unusable_parameters_is_an_error_before_any_work(directory: Path, body: str, problem: str):
    with pytest.raises(UserError, match=re.escape(problem)):
        open_with_reward(body)


def test_a_column_that_is_missing_or_not_json_is_an_error(directory: Path):
    with pytest.raises(UserError, match=r"data\.jsonl has no column level, which the reward function takes; found"):
        open_with_reward("def score(completions, level):\n    return []\n").questions("train")
    pq.write_table(pa.table({"question": ["?"], "raw": [b"\x00"]}), "data.parquet")
    with pytest.raises(
        UserError, match="row 0: the columns that the reward function takes are stored as JSON, and one cannot be: "
    ):
        open_with_reward("def score(completions, raw):\n    return []\n", data="data.parquet").questions("train")
