"""The result of grading one response: the reward, the answer that was read, and how the grader came to its verdict."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class Place(StrEnum):
    """Where a response states its answer."""

    BOX = "last box"
    BOXES = "several boxes"
    MARK = "after ####"
    TAG = "<answer> tag"
    ANNOUNCED = "after 'answer is'"
    OPTION = "option"
    FORMULA = "last formula"
    WHOLE_TEXT = "whole text"
    LAST_NUMBER = "last number"
    NOWHERE = "nowhere"


class Reason(StrEnum):
    """Why a response got its reward."""

    EQUAL = "equal"
    DIFFERENT = "different value"
    DIFFERENT_UNIT = "different unit"
    HEDGED = "several alternatives"
    NOT_A_VALUE = "words that change the value"
    NO_ANSWER = "no answer"
    OPEN_BOX = "cut off inside a box"
    TOO_LONG = "answer too long"
    INVALID = "invalid expression"
    UNGRADABLE = "limits of grading exceeded"
    REWARD_FUNCTION = "reward function"


class Step(NamedTuple):
    """One step that led to a verdict.

    Attributes:
      name: what was done, such as `normalize the answer`.
      result: the text that resulted.
    """

    name: str
    result: str


@dataclass(frozen=True)
class Verdict:
    """The result of grading one response.

    Attributes:
      answer: the answer found in the response, in canonical form (equal answers are equal strings); None if there is
        none.
      reward: 1 for a right answer, 0 for a wrong one (a reward function returns any number); None if the response is
        ungradable, because grading exceeded its limits.
      reason: why it got this reward.
      place: where the response states the answer.
      stated: the answer as the response states it; None if there is none.
      steps: what led from the response to the verdict, in order.
    """

    answer: str | None
    reward: float | None
    reason: Reason
    place: Place
    stated: str | None = field(default=None, compare=False)
    steps: tuple[Step, ...] = field(default=(), compare=False)


def judge(answer: str | None, is_right: bool, place: Place, stated: str, *steps: Step) -> Verdict:
    """Return the verdict on a response that states an answer, right or wrong."""
    return Verdict(answer, float(is_right), Reason.EQUAL if is_right else Reason.DIFFERENT, place, stated, steps)


def no_answer(*steps: Step) -> Verdict:
    """Return the verdict on a response without an answer."""
    return Verdict(None, 0.0, Reason.NO_ANSWER, Place.NOWHERE, None, steps)
