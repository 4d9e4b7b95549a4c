"""The questions that a stage uses: consecutive selections, in the order of the data or in shuffled orders."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.errors import UserError
from stages.tasks import Question, Split, Task, open_task
from stages.tasks.selection import select_questions


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Return a task with ten training questions."""
    path = tmp_path_factory.mktemp("ten") / "train.jsonl"
    path.write_text("\n".join(f'{{"question": "{i}?", "answer": "{i}"}}' for i in range(10)))
    return open_task("gsm8k", str(path))


def numbers(questions: Sequence[Question]) -> list[int]:
    return [int(question.reference) for question in questions]


def test_without_a_seed_questions_are_consecutive_in_the_order_of_the_data(ten: Task):
    assert numbers(select_questions(ten, "train", None)) == list(range(10))
    assert numbers(select_questions(ten, "train", 3)) == [0, 1, 2]
    assert numbers(select_questions(ten, "train", 3, skip=7)) == [7, 8, 9]
    assert numbers(select_questions(ten, "train", None, skip=8)) == [8, 9]


@pytest.mark.parametrize(
    ("count", "skip", "message"),
    [
        (11, 0, "--num-questions 11"),
        (4, 7, "--skip-questions 7 and --num-questions 4"),
        (None, 10, "--skip-questions 10"),
        (1, 12, "--skip-questions 12"),
    ],
)
def test_a_selection_beyond_the_last_question_is_an_error(ten: Task, count: int | None, skip: int, message: str):
    with pytest.raises(
        UserError, match=rf"the train split of gsm8k has 10 questions; .*{message}.* needs more"
    ) as raised:
        select_questions(ten, "train", count, skip)
    assert "None" not in str(raised.value)


def test_a_seed_determines_the_order_and_another_seed_gives_another_order(ten: Task):
    first = numbers(select_questions(ten, "train", None, shuffle_seed=1))
    assert sorted(first) == list(range(10))
    assert first == numbers(select_questions(ten, "train", None, shuffle_seed=1)) != list(range(10))
    assert first != numbers(select_questions(ten, "train", None, shuffle_seed=2))


def test_iterations_use_all_questions_before_any_question_is_repeated(ten: Task):
    drawn = [numbers(select_questions(ten, "train", 5, skip=5 * i, shuffle_seed=3)) for i in range(4)]
    assert sorted(drawn[0] + drawn[1]) == sorted(drawn[2] + drawn[3]) == list(range(10))
    assert drawn[0] + drawn[1] != drawn[2] + drawn[3], "the second pass has another order"


@given(count=st.integers(1, 10), skip=st.integers(0, 40), seed=st.integers(0, 5))
def test_a_selection_never_contains_a_question_twice(count: int, skip: int, seed: int):
    task = open_task("arithmetic")
    first_ten = _FirstTen(task)
    chosen = select_questions(first_ten, "train", count, skip, seed)  # pyright: ignore[reportArgumentType]
    assert len({question.id for question in chosen}) == len(chosen) == count


def test_a_shuffled_selection_larger_than_the_split_is_an_error(ten: Task):
    with pytest.raises(UserError, match="has 10 questions; --num-questions 11 needs more"):
        select_questions(ten, "train", 11, shuffle_seed=0)


def test_an_endless_stream_cannot_be_taken_whole_or_shuffled():
    with pytest.raises(UserError, match="pass --num-questions"):
        select_questions(open_task("arithmetic"), "train", None)
    with pytest.raises(UserError, match="omit --shuffle-seed"):
        select_questions(open_task("arithmetic"), "train", 4, shuffle_seed=0)
    assert len(select_questions(open_task("arithmetic"), "train", 2, skip=900_000_000)) == 2


def test_the_error_for_a_missing_split_names_it(ten: Task):
    with pytest.raises(UserError, match="has no test split"):
        select_questions(ten, "test", 1)


class _FirstTen:
    """The first ten questions of a task."""

    def __init__(self, task: Task):
        self.name, self._task = task.name, task

    def questions(self, split: Split) -> Sequence[Question]:
        return self._task.questions(split)[:10]
