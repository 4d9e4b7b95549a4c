"""One notation for mathematical answers."""

from __future__ import annotations

import pytest

from stages.tasks.maths_normalization import align, compact, is_list, nesting_depth, normalize, parse_collection


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        (r"$\dfrac12$.", r"\frac12"),
        (r"\left( 3,\,4 \right)", "( 3, 4 )"),
        (r"{\bf 42}", "42"),
        ("x**2", "x^2"),
        ("x^12", "x^{12}"),
        ("sqrt(2)", r"\sqrt{2}"),
        (r"\text{about } 5", "5"),
        (r"\frac13 \approx 0.33", r"\frac13"),
        (r"\$5", r"5\text{ dollars}"),
        ("x <= 2", r"x \le  2"),
        ("４２", "42"),
        ("3 \\quad 4", "3    4"),
    ],
)
def test_notation_is_unified(text: str, normalized: str):
    assert normalize(text) == normalized


def test_a_space_between_digits_counts():
    assert compact("3 4") == "3 4"
    assert compact("x + 1") == compact("x+1")


def test_names_are_removed_if_the_other_side_has_none():
    assert align("x = 4", "4") == ("4", "4")
    assert align("4 = x", "4") == ("4", "4")
    assert align("x = 4", "y = 4") == ("x = 4", "y = 4")
    assert align(r"\{x \mid x > 3\}", "x > 3") == ("x > 3", "x > 3")


def test_collections_are_read_with_their_brackets():
    assert parse_collection("(1,[2,3))") is not None
    collection = parse_collection(r"\{1 \pm 2, 3\}")
    assert collection is not None
    assert collection.items == ["1 + 2", "1 - 2", "3"]
    assert parse_collection("5") is None
    assert is_list("1,2")
    assert not is_list("(1,2)")
    assert nesting_depth("((1))") == 2
