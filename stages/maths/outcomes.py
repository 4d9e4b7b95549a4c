"""Distinguish responses without an answer from wrong ones, and find out whether rewards leave anything to learn."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.maths.values import all_equal

NEARLY_ALL = 0.95
"""Share of responses, truncated or without an answer, from which on there is next to nothing to learn."""


def lacks_answer(
    finished: NDArray[np.bool_], has_answer: NDArray[np.bool_], reward: NDArray[np.floating]
) -> NDArray[np.bool_]:
    """Return which responses ended without an answer that the verifier found: [N] bool.

    A truncated or ungradable response is not one of them. If no response has an answer although some earn a reward,
    the verifier (a user's reward function) reads no answers, and none is missing.

    Args:
      finished: [N] whether the response ended by itself.
      has_answer: [N] whether an answer was found.
      reward: [N], NaN where the response could not be graded.
    """
    reads_answers = bool(has_answer.any()) or not (reward > 0).any()
    return finished & ~has_answer & ~np.isnan(reward) & reads_answers


class Signal(NamedTuple):
    """What N responses to Q questions leave to learn.

    Attributes:
      equal: whether all rewards that are compared with each other are equal: those of each question with several graded
        responses, or all of them if no question has several.
      alone: whether no question has several graded responses.
      reward: the reward that all graded responses have; None if they differ or there is none.
      truncated, no_answer, ungradable: shares of the responses, from 0 to 1.
    """

    equal: bool
    alone: bool
    reward: float | None
    truncated: float
    no_answer: float
    ungradable: float

    @property
    def is_nothing(self) -> bool:
        """Return whether there is nothing to learn, or next to nothing."""
        return self.equal or self.truncated + self.no_answer >= NEARLY_ALL


def measure_signal(
    reward: NDArray[np.floating],
    question: NDArray[np.int64],
    finished: NDArray[np.bool_],
    has_answer: NDArray[np.bool_],
) -> Signal:
    """Measure what responses leave to learn.

    Args:
      reward: [N], NaN where the response could not be graded.
      question: [N] number of each response's question, from 0.
      finished, has_answer: [N] as in `lacks_answer`.

    Raises:
      ValueError: there is no response.
    """
    if not reward.size:
        raise ValueError("expected at least one response")
    graded = ~np.isnan(reward)
    known = np.unique(reward[graded])
    several = np.bincount(question[graded], minlength=question.max() + 1) > 1
    equal = all_equal(reward, question)
    return Signal(
        equal=known.size < 2 or (bool(several.any()) and bool(equal[several].all())),
        alone=not several.any(),
        reward=float(known[0]) if known.size == 1 else None,
        truncated=float(np.mean(~finished)),
        no_answer=float(np.mean(lacks_answer(finished, has_answer, reward))),
        ungradable=float(np.mean(~graded)),
    )
