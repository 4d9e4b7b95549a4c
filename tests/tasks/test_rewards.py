"""A user's own reward function: what it is handed, what it may hand back, and what is said when it does not."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.core.errors import Interrupted, UserError
from stages.shards.sharding import interruptible
from stages.tasks import Task, open_task

ROWS = [{"question": "1 + 1?", "answer": "2", "weight": 3}, {"question": "2 + 2?", "answer": "4", "weight": 5}]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with data.jsonl, where modules of rewards may be written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("my_rewards")]:
        del sys.modules[name]


def own(body: str, module: str = "my_rewards", data: str | None = "data.jsonl") -> Task:
    Path(f"{module}.py").write_text(body)
    sys.modules.pop(module, None)
    return open_task("custom", data, [f"reward={module}:score"])


def rewards(task: Task, texts: list[str]) -> list[float | None]:
    references = [question.reference for question in task.questions("train")]
    return [verdict.reward for verdict in task.verify_all(texts, references)]  # type: ignore[attr-defined]


def test_it_is_given_completions_prompts_and_the_columns_that_it_names(here: Path):
    task = own(
        "def score(completions, prompts, answer, weight, bonus=0.5):\n"
        "    assert prompts == ['1 + 1?', '2 + 2?'] and isinstance(weight[0], int)\n"
        "    return [w * (gold in text) + bonus for text, gold, w in zip(completions, answer, weight)]\n"
    )
    assert rewards(task, ["it is 2", "it is 5"]) == [3.5, 0.5]
    assert json.loads(task.questions("train")[0].reference) == {"prompts": "1 + 1?", "answer": "2", "weight": 3}


def test_one_that_takes_any_column_is_given_all_of_them(here: Path):
    task = own("def score(completions, **columns):\n    return [float(len(columns)) for _ in completions]\n")
    assert rewards(task, ["", ""]) == [4.0, 4.0]
    assert json.loads(task.questions("train")[1].reference) == {**ROWS[1], "prompts": "2 + 2?"}


def test_none_is_ungradable_and_the_answer_is_the_last_box(here: Path):
    task = own("def score(completions):\n    return [None if text == '' else True for text in completions]\n")
    verdicts = [task.verify("", "{}"), task.verify(r"\boxed{7}", "{}")]
    assert [(verdict.answer, verdict.reward) for verdict in verdicts] == [(None, None), ("7", 1.0)]


def test_trajectories_alone_are_enough_to_grade(here: Path):
    """What was sampled holds the columns, so a later stage needs the function and no data."""
    text = "def score(completions, weight):\n    return [w / 10 for w in weight]\n"
    references = [question.reference for question in own(text).questions("train")]
    assert own(text, data=None).verify("", references[1]).reward == 0.5


def test_the_function_s_file_is_in_the_digest(here: Path):
    before = own("def score(completions):\n    return [0.0] * len(completions)\n").digest
    assert own("def score(completions):\n    return [0.0] * len(completions)\n").digest == before
    assert own("def score(completions):\n    return [1.0] * len(completions)\n").digest != before


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
def test_what_goes_wrong_in_it_is_told_with_its_name_and_row(here: Path, body: str, problem: str):
    task = own(f"def score(completions, weight):\n{body}\n")
    with pytest.raises(UserError, match=re.escape(f"--task-arg reward my_rewards:score {problem}")):
        rewards(task, ["yes", "no"])


def test_a_signal_is_no_failure_of_it_and_none_that_it_may_survive(here: Path):
    task = own(
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


def test_one_that_fails_on_the_batch_alone_is_told_too(here: Path):
    task = own("def score(completions):\n    assert len(completions) < 2, 'one at a time'\n    return [0.0]\n")
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
def test_one_that_cannot_be_called_is_told_before_any_work(here: Path, body: str, problem: str):
    with pytest.raises(UserError, match=re.escape(problem)):
        own(body)


def test_a_column_that_the_data_lacks_or_that_is_no_json_is_told(here: Path):
    with pytest.raises(UserError, match=r"data\.jsonl has no column level, which the reward function asks for; found"):
        own("def score(completions, level):\n    return []\n").questions("train")
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"question": ["?"], "raw": [b"\x00"]}), "data.parquet")
    with pytest.raises(UserError, match="row 0: the columns that the reward function asks for become JSON"):
        own("def score(completions, raw):\n    return []\n", data="data.parquet").questions("train")
