"""A gold answer with one digit, sign or unit changed is accepted nowhere (a sample; `make mutations` takes more)."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.tasks.mutations import Mutation, accepted, draw, mutate

UP_TO = {"gsm8k": 1_000, "math": 400, "aime24": 100, "amc23": 100, "minerva_math": 60}


@pytest.mark.parametrize("name", UP_TO)
def test_a_changed_gold_answer_is_wrong(shared: Path, name: str):
    mutations = draw(shared / "data", name, UP_TO[name], seed=1)
    assert len(mutations) >= 50
    assert not accepted(name, mutations)


def test_a_change_that_keeps_the_value_is_left_out():
    assert Mutation("0", "-0") not in mutate("0", Random(0))
    assert Mutation(r"30\text{ hours}", r"30\text{ minutes}") in mutate(r"30\text{ hours}", Random(0))
