"""The value of an answer and what the words beside it say."""

from __future__ import annotations

import pytest

from stages.tasks.maths_normalization import normalize
from stages.tasks.quantities import compare_quantities, read_quantity


@pytest.mark.parametrize(
    ("text", "body", "words"),
    [
        (r"30\text{ cm}", "30", {"cm"}),
        (r"15\mbox{ cm}^2", "15", {"cm"}),
        (r"2\sqrt{3}\text{ square inches}", r"2\sqrt{3}", {"square", "inch"}),
        (r"5\frac{\text{m}}{\text{s}}", "5", {"m", "s"}),
        ("5cm", "5", {"cm"}),
        ("12 m", "12", {"m"}),
        ("90°", "90", {"degree"}),
        (r"\$18.90", "18.90", {"dollar"}),
        (r"\text{5 hours}", "5", {"hour"}),
        (r"\text{half a dozen eggs}", "6", {"egg"}),
        ("5m", "5m", set()),
        ("5 ab", "5 ab", set()),
        ("2t", "2t", set()),
        (r"\sin 30^\circ", r"\sin 30^\circ", set()),
        ("x^2+1", "x^2+1", set()),
    ],
)
def test_a_unit_is_split_from_its_value(text: str, body: str, words: set[str]):
    quantity = read_quantity(normalize(text))
    assert quantity is not None
    assert (quantity.body, set(quantity.unit.words)) == (body, words)


@pytest.mark.parametrize("text", [r"5\text{ is not a root}", r"5\text{ or more}", "3 squared"])
def test_words_that_change_the_value_make_it_none(text: str):
    assert read_quantity(normalize(text)) is None


def test_units_of_one_dimension_are_added_up():
    time = read_quantity(normalize(r"5\text{ hours }30\text{ minutes}"))
    minutes = read_quantity(normalize(r"330\text{ minutes}"))
    bare = read_quantity("330")
    assert time is not None
    assert minutes is not None
    assert bare is not None
    assert compare_quantities(time, minutes) == "330"
    assert compare_quantities(time, bare) is None
