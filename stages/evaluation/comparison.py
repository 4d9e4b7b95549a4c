"""Compare two evaluations by question: differences with standard errors and p-values, questions won and lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.evaluation.scores import Estimate, Scores, estimate
from stages.maths.statistics import ROUNDING, sign_flip_p_value


@dataclass(frozen=True)
class Comparison:
    """One accuracy of one task and budget in two evaluations, over the questions that both have.

    Attributes:
      max_tokens: budgets of the first and of the second evaluation.
      accuracy: name such as `avg@4`; `avg@1, avg@4` if the numbers of responses differ.
      questions: number of questions compared.
      only_first, only_second: number of questions that the other evaluation lacks or could not grade.
      difference: second − first, with the standard error of the paired differences.
      p_value: two-sided, of the sign-flip permutation test on the differences by question.
      won, lost, tied: number of questions where the second evaluation is better, worse, equal.
    """

    task: str | None
    max_tokens: tuple[int | None, int | None]
    accuracy: str
    questions: int
    only_first: int
    only_second: int
    first: Estimate
    second: Estimate
    difference: Estimate
    p_value: float
    won: int
    lost: int
    tied: int


def compare(first: Sequence[Scores], second: Sequence[Scores]) -> list[Comparison]:
    """Compare every accuracy that both evaluations have, task by task and budget by budget."""
    return [found for pair in _pairs(first, second) for found in _compare(*pair)]


def _pairs(first: Sequence[Scores], second: Sequence[Scores]) -> list[tuple[Scores, Scores]]:
    """Return the scores to compare: same task and budget; same task alone if each evaluation has a single budget."""
    pairs = []
    for task in dict.fromkeys(scores.task for scores in first):
        ours = {scores.max_tokens: scores for scores in first if scores.task == task}
        theirs = {scores.max_tokens: scores for scores in second if scores.task == task}
        if common := [budget for budget in ours if budget in theirs]:
            pairs += [(ours[budget], theirs[budget]) for budget in common]
        elif len(ours) == len(theirs) == 1:
            pairs += zip(ours.values(), theirs.values(), strict=True)
    return pairs


def _compare(first: Scores, second: Scores) -> list[Comparison]:
    """Compare every common accuracy over the questions that both evaluations graded."""
    row_in_second = {name: row for row, name in enumerate(second.question_ids)}
    # [Q] rows of the common questions in either evaluation
    ours = np.array([row for row, name in enumerate(first.question_ids) if name in row_in_second], np.int64)
    theirs = np.array([row_in_second[first.question_ids[row]] for row in ours], np.int64)
    found = []
    for one, other in _common_accuracies(first, second):
        a, b = first.accuracies[one], second.accuracies[other]
        both = ~np.isnan(a[ours]) & ~np.isnan(b[theirs])
        if both.any():
            name = one if one == other else f"{one}, {other}"
            found.append(_comparison(first, second, name, a[ours][both], b[theirs][both]))
    return found


def _common_accuracies(first: Scores, second: Scores) -> list[tuple[str, str]]:
    """Return pairs of names: avg@k estimates the same quantity for every k; maj@k and pass@k need the same k."""
    average = f"avg@{first.samples}", f"avg@{second.samples}"
    same = [(name, name) for name in first.accuracies if name in second.accuracies and name != average[0]]
    return [average, *same]


def _comparison(first: Scores, second: Scores, name: str, a: NDArray[np.float64], b: NDArray[np.float64]) -> Comparison:
    """Compare one accuracy, given as [Q] values `a` and `b` of the same questions."""
    change = b - a
    won, lost = int((change > ROUNDING).sum()), int((change < -ROUNDING).sum())
    return Comparison(
        task=first.task,
        max_tokens=(first.max_tokens, second.max_tokens),
        accuracy=name,
        questions=a.size,
        only_first=len(first.question_ids) - a.size,
        only_second=len(second.question_ids) - a.size,
        first=estimate(a),
        second=estimate(b),
        difference=estimate(change),
        p_value=sign_flip_p_value(change),
        won=won,
        lost=lost,
        tied=a.size - won - lost,
    )
