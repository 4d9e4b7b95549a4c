"""Which data and options apply to which of several tasks."""

import pytest

from stages.configs.choices import pair_tasks
from stages.core.errors import UserError


def test_one_task_takes_plain_data_and_options():
    assert pair_tasks(["gsm8k"], ["some=where"], ["answer=x", "gsm8k.question=y"]) == (
        ("gsm8k", "some=where", ("answer=x", "question=y")),
    )


def test_values_with_a_task_name_apply_to_it_and_others_to_all():
    found = pair_tasks(["math500", "aime24"], ["data", "aime24=other"], ["a=1", "math500.b=2", "aime24.b=3"])
    assert found == (("math500", "data", ("a=1", "b=2")), ("aime24", "other", ("a=1", "b=3")))


def test_tasks_need_no_data():
    assert pair_tasks(["arithmetic", "game24"], [], []) == (("arithmetic", None, ()), ("game24", None, ()))


@pytest.mark.parametrize(
    ("tasks", "data", "message"),
    [
        ([], [], "at least one task"),
        (["a", "b", "a"], [], "names a twice"),
        (["a"], ["x", "y"], "gives x and y for a"),
        (["a", "b"], ["b=x", "b=y"], "gives x and y for b; expected one place, as b=PATH"),
    ],
)
def test_what_cannot_be_paired_is_refused(tasks: list[str], data: list[str], message: str):
    with pytest.raises(UserError, match=message):
        pair_tasks(tasks, data, [])
