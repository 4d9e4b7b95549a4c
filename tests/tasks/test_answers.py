"""Where a response states its answer."""

from __future__ import annotations

import pytest

from stages.tasks.answers import find_answer, join_boxes
from stages.tasks.boxes import find_boxes
from stages.tasks.verdicts import Place, Reason
from tests.pace import within


@pytest.mark.parametrize(
    ("response", "text", "place"),
    [
        (r"so \boxed{4}", "4", Place.BOX),
        (r"within \boxed{}. So \boxed{4}, within \boxed{}", "4", Place.BOX),
        (r"within \boxed{}. The answer is 8.", "8", Place.ANNOUNCED),
        (r"\boxed{3}. The final answer is $20$. Note: long.", "20", Place.ANNOUNCED),
        (r"\boxed{3}. The final answer is positive.", "3", Place.BOX),
        (r"either \boxed{4} or \boxed{5}", "4,5", Place.BOXES),
        (r"$\boxed{-2}$ and $\boxed{1}$", "1", Place.BOX),
        ("<think>5</think><answer>6</answer>", "6", Place.TAG),
        (r"<answer>\boxed{6}</answer>", "6", Place.BOX),
        ("The correct option is (D).", "(D)", Place.OPTION),
        ("The answer is (D), since it fits.", "(D)", Place.ANNOUNCED),
        ("The answer is 3.5. I hope this answer is correct.", "3.5", Place.ANNOUNCED),
        ("The answer is unknown. I tried 5", "unknown", Place.ANNOUNCED),
        ("so\n#### 18 eggs", "18 eggs", Place.MARK),
        ("Therefore $x = 4$.", "x = 4", Place.FORMULA),
        ("Thus the total is 12.", "12", Place.LAST_NUMBER),
        ("-15", "-15", Place.WHOLE_TEXT),
        ("<answer>The answer is 6.</answer>", "6", Place.TAG),
        ("Thus, $x = 5$. Let me know if you have questions!", "x = 5", Place.FORMULA),
        ("So x = **5**", "5", Place.LAST_NUMBER),
        ("Therefore, there are 12 ways to sit.", "12", Place.LAST_NUMBER),
        ("It's not A, therefore I think it's B", "B", Place.OPTION),
        ("B. The others are odd.", "B", Place.OPTION),
    ],
)
def test_the_statement_is_found(response: str, text: str, place: Place):
    stated = find_answer(response)
    assert (stated.text, stated.place) == (text, place)


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("", Reason.NO_ANSWER),
        ("I do not know.", Reason.NO_ANSWER),
        ("There remain 3 cases, and each would split into 5", Reason.NO_ANSWER),
        ("Each would split into $5$", Reason.NO_ANSWER),
        ("It is either (B) or (C).", Reason.NO_ANSWER),
        ("It is not B", Reason.NO_ANSWER),
        ("So x = **5", Reason.NO_ANSWER),
        ("Suppose that $x = 5$.", Reason.NO_ANSWER),
        (r"The answer is \boxed{ }.", Reason.NO_ANSWER),
        (r"The answer is \boxed{4", Reason.OPEN_BOX),
    ],
)
def test_a_response_may_state_none(response: str, reason: Reason):
    stated = find_answer(response)
    assert (stated.text, stated.reason) == (None, reason)


@pytest.mark.parametrize(
    ("text", "joined"),
    [
        (r"\boxed{1} papers and \boxed{2} bins", "1,2"),
        (r"\boxed{35 cm} ++++++ \boxed{4}", "35 cm,4"),
        (r"\boxed{1} no no no no no \boxed{2}", "2"),
        (r"$\boxed{7}$, or $\boxed{9}$ if it is late. So $\boxed{5}$.", "5"),
    ],
)
def test_boxes_of_a_reference_are_joined_over_few_words(text: str, joined: str):
    assert join_boxes(text, find_boxes(text)[0]) == joined


@pytest.mark.parametrize(
    "fragment", ["answer is ", "$x$ ", "<answer>", "#### ", "option is (A) ", r"\[ ", "is 5. ", "thank \n", "it's A, "]
)
def test_hostile_text_is_searched_in_linear_time(fragment: str):
    with within(5):
        find_answer(fragment * 50_000)
