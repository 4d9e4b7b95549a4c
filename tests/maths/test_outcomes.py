"""What responses leave to learn, worked by hand."""

import numpy as np
import pytest

from stages.maths.outcomes import lacks_answer, measure_signal

NAN = float("nan")


def flags(text: str) -> np.ndarray:
    return np.array([letter == "x" for letter in text], np.bool_)


def test_an_answer_is_missing_from_finished_gradable_responses_only():
    #                   answered, none, truncated, ungradable
    finished, answered, reward = flags("xx.x"), flags("x..."), np.array([1, 0, 0, NAN])
    assert lacks_answer(finished, answered, reward).tolist() == [False, True, False, False]


def test_a_reward_function_that_reads_no_answers_misses_none():
    assert not lacks_answer(flags("xx"), flags(".."), np.array([0.5, 0.0])).any()
    assert lacks_answer(flags("xx"), flags(".."), np.array([0.0, 0.0])).all(), "nothing was earned without an answer"


@pytest.mark.parametrize(
    ("reward", "question", "equal", "alone", "common"),
    [
        ([1, 0, 1, 1], [0, 0, 1, 1], False, False, None),
        ([1, 1, 0, 0], [0, 0, 1, 1], True, False, None),  # equal within each question
        ([0, 0, 0, 0], [0, 0, 1, 1], True, False, 0),
        ([1, 0, 1, 0], [0, 1, 2, 3], False, True, None),  # one response per question: rewards of rollouts may differ
        ([1, NAN, 1, NAN], [0, 0, 1, 1], True, True, 1),
        ([1, NAN, 0, 0], [0, 0, 1, 1], True, False, None),
        ([NAN, NAN, NAN, NAN], [0, 0, 1, 1], True, True, None),
    ],
)
def test_equal_rewards_leave_nothing_to_learn(reward, question, equal, alone, common):
    answered = flags("xxxx")
    found = measure_signal(np.array(reward, np.float32), np.array(question), answered, answered)
    assert (found.equal, found.alone, found.reward, found.is_nothing) == (equal, alone, common, equal)
    assert found.ungradable == np.isnan(reward).mean()


def test_nearly_all_truncated_or_without_an_answer_is_next_to_nothing():
    reward, question = np.array([1.0, 0] * 20), np.repeat(np.arange(20), 2)
    answered, finished = np.zeros(40, np.bool_), np.ones(40, np.bool_)
    answered[:2], finished[20:] = True, False
    found = measure_signal(np.where(answered, reward, 0), question, finished, answered)
    assert (found.truncated, found.no_answer, found.equal, found.is_nothing) == (0.5, 18 / 40, False, True)
    answered[2:4] = True
    assert not measure_signal(np.where(answered, reward, 0), question, finished, answered).is_nothing
