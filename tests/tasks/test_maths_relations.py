"""Inequalities and set-builder notation."""

from __future__ import annotations

import pytest

from stages.tasks.maths_relations import as_union, ascending, without_set_builder


def test_a_descending_chain_is_reversed():
    assert ascending("c > b > a") == "a < b < c"
    assert ascending("a < b") == "a < b"


@pytest.mark.parametrize(
    ("text", "union"),
    [
        (r"x<1 \text{ or } x \ge 2", r"(-\infty,1)\cup[2,\infty)"),
        (r"1 < x \le 3", "(1,3]"),
        ("x<1, y>2", None),
        ("3", None),
    ],
)
def test_alternatives_are_a_union(text: str, union: str | None):
    assert as_union(text) == union


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        (r"\{x \mid x > 3\}", "x > 3"),
        (r"\{x : x > 3\}", "x > 3"),
        (r"\{x \in \mathbb R \mid x > 3\}", "x > 3"),
        (r"\{x \in \mathbb Z \mid x > 3\}", r"\{x \in \mathbb Z \mid x > 3\}"),
        (r"\{1,2\}", r"\{1,2\}"),
    ],
)
def test_a_set_of_reals_is_its_condition(text: str, condition: str):
    assert without_set_builder(text) == condition
