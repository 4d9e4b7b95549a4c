"""The game of 24: every solvable hand is a question, every solution is right, and files keep their order."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from stages.core.errors import UserError
from stages.tasks import SPLITS, open_task
from stages.tasks.game24 import _solve

TASK = open_task("game24")


def test_without_data_the_questions_are_the_1362_solvable_hands_each_in_one_split():
    questions = {split: TASK.questions(split) for split in SPLITS}
    ids = [question.id for split in SPLITS for question in questions[split]]
    assert len(ids) == len(set(ids)) == 1362
    assert [len(questions[split]) for split in SPLITS] == [676, 345, 341]
    first = questions["train"][0]
    assert (first.id, first.reference) == ("game24-1-1-1-12", "1 1 1 12")
    assert "1, 1, 1 and 12" in first.prompt


def test_every_solution_is_right_for_its_hand_and_wrong_for_others():
    questions = TASK.questions("test")
    for question, other in pairwise(questions):
        assert TASK.verify(question.solution or "", question.reference).reward == 1.0
        assert TASK.verify(question.solution or "", other.reference).reward == 0.0


def test_only_solvable_hands_have_a_solution():
    assert _solve((1, 1, 1, 1)) is None
    assert _solve((1, 5, 5, 5)) is not None  # 5 * (5 - 1/5) needs a fraction
    assert _solve((3, 3, 8, 8)) is not None  # 8 / (3 - 8/3)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("24.csv", "Rank,Puzzles\n1,1 1 4 6\n2,12 2 1 1\n"),
        ("24.jsonl", '{"numbers": [1, 1, 4, 6]}\n{"numbers": [12, 2, 1, 1]}\n'),
    ],
)
def test_puzzles_keep_the_order_of_the_file(tmp_path: Path, name: str, content: str):
    (tmp_path / name).write_text(content)
    task = open_task("game24", str(tmp_path / name))
    first, second = task.questions("test")
    assert (first.id, first.reference) == ("game24-1-1-4-6", "1 1 4 6")
    assert second.reference == "12 2 1 1"
    assert task.verify(second.solution or "", second.reference).reward == 1.0
    assert task.digest != TASK.digest


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"Puzzles": "1 1 4"}, None),
        ({"Puzzles": "1"}, "row 0: a puzzle must be two to four integers, separated by spaces; got '1'"),
        ({"Puzzles": "1 2 x 4"}, "got '1 2 x 4'"),
        ({"hands": "1 1 4 6"}, "has no column Puzzles or puzzle or numbers or nums; found hands"),
    ],
)
def test_a_row_without_a_puzzle_is_an_error(tmp_path: Path, row: dict, problem: str | None):
    (tmp_path / "24.jsonl").write_text(json.dumps(row))
    task = open_task("game24", str(tmp_path / "24.jsonl"))
    if problem is None:
        assert len(task.questions("test")) == 1
    else:
        with pytest.raises(UserError, match=re.escape(problem)):
            task.questions("test")


def test_a_repeated_puzzle_and_an_option_are_errors(tmp_path: Path):
    (tmp_path / "24.csv").write_text("Puzzles\n1 1 4 6\n6 4 1 1\n")
    with pytest.raises(UserError, match=r"row 1 repeats the numbers of .*24\.csv row 0: 6-4-1-1"):
        open_task("game24", str(tmp_path / "24.csv")).questions("test")
    with pytest.raises(UserError, match="task game24 has no options; got --task-arg target"):
        open_task("game24", None, ["target=25"])


def test_the_published_puzzles_are_the_solvable_hands(shared: Path):
    questions = open_task("game24", str(shared / "data")).questions("test")
    assert len(questions) == 1362
    ours = {question.reference for split in SPLITS for question in TASK.questions(split)}
    assert {" ".join(map(str, sorted(map(int, q.reference.split())))) for q in questions} == ours
