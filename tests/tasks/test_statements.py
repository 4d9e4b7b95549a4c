"""What a text announces as its answer, and where the statement ends."""

from __future__ import annotations

import pytest

from stages.tasks.statements import find_announced, find_final_answer, find_marked, value_in_sentence
from tests.pace import within


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("The answer is 5, since 2 + 3 = 5.", "5"),
        ("The answer is 5, not 6.", "5"),
        ("The answer is 5 (as shown above).", "5"),
        ("The answer is (5, 6).", "(5, 6)"),
        ("The answer is x = 5k, where k is an integer.", "x = 5k, where k is an integer"),
        ("The answer is for sure D, it cannot be A or B.", "D"),
        ("**Answer:** $5$", "5"),
        ("答案是：$5$。", "5"),
        ("所以最终答案为 5，因为它最小。", "5"),
        ("La réponse est donc 5.", "5"),
        ("Die Antwort lautet 5.", "5"),
        ("La respuesta final es: 5", "5"),
        ("A resposta é 5.", "5"),
        ("La risposta è 5.", "5"),
        ("Ответ: 5", "5"),
        ("答えは 5 です", "5 です"),
        ("정답: 5", "5"),
        ("The answer is correct.", None),
        ("I know it.", None),
    ],
)
def test_an_announcement_ends_where_a_remark_begins(text: str, said: str | None):
    found = find_announced(text)
    assert (found and found.text) == said


def test_the_final_answer_after_a_position_counts():
    text = "The final answer is $4$. The final answer is $5$."
    assert find_final_answer(text, 0) == "5"
    assert find_final_answer(text, len(text)) == ""


def test_the_line_after_the_mark_counts():
    found = find_marked("#### 4\n#### $5$\nEnd.")
    assert found
    assert found.text == "5"
    assert find_marked("no mark") is None


@pytest.mark.parametrize(
    ("sentence", "value"),
    [
        ("The largest n is 34", "34"),
        ("The volume of ABCD is 120 cubic inches", "120 cubic inches"),
        ("that there are 12 sequences", "12 sequences"),
        ("Jane started 3 hours ago", "3"),
        ("The largest integer less than 10 is 9", "9"),
        ("The number is less than 9", None),
        ("The number is not 9", None),
        ("It is either 4 or 5", None),
        ("Jane started 3 hours and 5 minutes ago", None),
        ("She has half of 18", None),
        ("x = 5", None),
        ("5 is prime", None),
        (r"\text{The value is } 5", None),
    ],
)
def test_a_sentence_states_a_value_unless_it_denies_or_bounds_it(sentence: str, value: str | None):
    assert value_in_sentence(sentence) == value


@pytest.mark.parametrize("fragment", ["answer is ", "答案是", "is ", "réponse ", "The n is 5 ", "answer: (as "])
def test_hostile_text_is_read_in_linear_time(fragment: str):
    with within(5):
        find_announced(fragment * 20_000)
        value_in_sentence(fragment * 20_000)
