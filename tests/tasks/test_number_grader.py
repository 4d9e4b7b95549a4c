"""Verdicts on responses whose answer is a number: where it is read, what is compared, what is no answer."""

from __future__ import annotations

import pytest

from stages.tasks.number_grader import verify, verify_all
from stages.tasks.verdicts import Place, Reason


@pytest.mark.parametrize(
    ("response", "place", "answer"),
    [
        ("9 * 2 = 18\n#### 18", Place.MARK, "18"),
        ("#### The answer is 18", Place.MARK, "18"),
        (r"#### \boxed{18}", Place.BOX, "18"),
        (r"\boxed{17}" + "\n#### 18", Place.MARK, "18"),
        (r"so \boxed{\frac{36}{2}} a day, 126 a week", Place.BOX, "18"),
        (r"within \boxed{}. The answer is 18.", Place.ANNOUNCED, "18"),
        ("<think>17</think><answer>18</answer>", Place.TAG, "18"),
        ("The final answer is that she has 18 eggs.", Place.ANNOUNCED, "18"),
        ("She sells 9 eggs and makes 18 dollars a day", Place.LAST_NUMBER, "18"),
        ("It is 18<|im_end|>", Place.LAST_NUMBER, "18"),
        ("答案是１８。", Place.ANNOUNCED, "18"),
    ],
)
def test_the_number_is_read_where_the_response_states_it(response: str, place: Place, answer: str):
    verdict = verify(response, "18")
    assert (verdict.reward, verdict.place, verdict.answer) == (1.0, place, answer)


@pytest.mark.parametrize(
    ("response", "reference", "reason"),
    [
        ("#### 17", "18", Reason.DIFFERENT),
        ("#### 18 or 19", "18", Reason.HEDGED),
        ("The answer is not 18.", "18", Reason.NOT_A_VALUE),
        ("He has less than 18", "18", Reason.HEDGED),
        ("It is 17 or 18", "18", Reason.HEDGED),
        (r"\boxed{18 \text{ m}^2}", "2", Reason.DIFFERENT),
        (r"\boxed{18", "18", Reason.OPEN_BOX),
        ("3 million", "3", Reason.DIFFERENT),
    ],
)
def test_a_wrong_response_says_why(response: str, reference: str, reason: Reason):
    verdict = verify(response, reference)
    assert (verdict.reward, verdict.reason) == (0.0, reason)


@pytest.mark.parametrize("response", ["", "####", "<think>18</think>", "I cannot tell.", r"\boxed{}"])
def test_a_response_may_state_no_number(response: str):
    verdict = verify(response, "18")
    assert (verdict.answer, verdict.reward, verdict.reason) == (None, 0.0, Reason.NO_ANSWER)


def test_the_reference_may_be_written_in_any_way():
    references = ["18", "18.0", "$18", "36/2", "1,080", "-18"]
    responses = ["#### 18", "#### 18", "#### 18", "#### 18", "#### 1080", "#### −18"]
    assert [verdict.reward for verdict in verify_all(responses, references)] == [1.0] * 6


def test_a_step_says_how_a_sentence_was_read():
    steps = verify("The answer is that there are 18 eggs.", "18").steps
    assert ("read the value in the sentence", "18 eggs") in [tuple(step) for step in steps]


def test_numbers_are_compared_without_algebra():
    assert verify(r"\boxed{\sin^2 1 + \cos^2 1}", "1").reward == 0.0
