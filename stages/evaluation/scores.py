"""Score graded responses: accuracy, length and truncation per question, and their means with standard errors.

A response that could not be graded (reward null) is excluded from every accuracy and counted; it does not count as
wrong. A question without a graded response is excluded from the accuracies and counted as well.
"""

# pyarrow.compute makes its functions at import time:
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages.maths.statistics import maj_at_k, mean_and_standard_error, pass_at_k, question_means
from stages.responses.signal import without_answer

COLUMNS = ("task", "max_tokens", "question_id", "subject", "level", "token_ids", "finish_reason", "answer", "reward")
"""Columns of `schemas.EVALUATION` that the scores are computed from."""

GROUPS = ("subject", "level")
"""Columns that divide the questions of a task into groups."""


@dataclass(frozen=True)
class Estimate:
    """A mean over questions and its standard error, clustered by question; NaN if it is undefined.

    Attributes:
      questions: number of questions; 0 if unknown.
    """

    mean: float
    standard_error: float
    questions: int = 0


@dataclass(frozen=True)
class Result:
    """The scores of one task under one budget, over all its questions or one group of them.

    Attributes:
      task, max_tokens: None if the responses, written by another tool, do not record them.
      group: the group's subject or level; None for all questions of the task.
      questions: number of questions.
      samples: k, the number of responses per question (the maximum over the questions).
      accuracies: `avg@k`, and for k > 1 `maj@k`, `pass@2`, `pass@4` … `pass@k`; empty if nothing could be graded.
      length: tokens of a response.
      no_answer: fraction of responses that ended without an answer that the verifier found.
      truncated: fraction of responses that the budget or the context truncated.
      ungradable: number of responses without a verdict.
      unscored: number of questions without a graded response.
    """

    task: str | None
    max_tokens: int | None
    group: str | None
    questions: int
    samples: int
    accuracies: dict[str, Estimate]
    length: Estimate
    no_answer: Estimate
    truncated: Estimate
    ungradable: int
    unscored: int


@dataclass(frozen=True)
class Scores:
    """The scores of each question of one task under one budget.

    Attributes:
      task, max_tokens, samples: as in `Result`.
      question_ids: [Q] in order of first appearance.
      groups: "subject" and "level" → [Q]; None for a question without one.
      accuracies: name as in `Result` → [Q]; NaN for a question without a graded response.
      length, no_answer, truncated: [Q] means over the responses to a question.
      ungradable: [Q] numbers of responses.
    """

    task: str | None
    max_tokens: int | None
    samples: int
    question_ids: list[str]
    groups: dict[str, list[str | None]]
    accuracies: dict[str, NDArray[np.float64]]
    length: NDArray[np.float64]
    no_answer: NDArray[np.float64]
    truncated: NDArray[np.float64]
    ungradable: NDArray[np.int64]

    def result(self, members: NDArray[np.bool_] | None = None, group: str | None = None) -> Result:
        """Return the means over all questions, or over the `members` [Q] of the group called `group`."""
        members = np.ones(len(self.question_ids), np.bool_) if members is None else members
        scored = members & ~np.isnan(next(iter(self.accuracies.values())))
        return Result(
            task=self.task,
            max_tokens=self.max_tokens,
            group=group,
            questions=int(members.sum()),
            samples=self.samples,
            accuracies={name: estimate(values[scored]) for name, values in self.accuracies.items() if scored.any()},
            length=estimate(self.length[members]),
            no_answer=estimate(self.no_answer[members]),
            truncated=estimate(self.truncated[members]),
            ungradable=int(self.ungradable[members].sum()),
            unscored=int((members & ~scored).sum()),
        )

    def results_by(self, group: str) -> list[Result]:
        """Return one result per subject or level, by name; none if there are fewer than two."""
        values = self.groups[group]
        names = sorted({value for value in values if value is not None})
        if len(names) < 2:
            return []
        return [self.result(np.array([value == name for value in values]), name) for name in names]


def estimate(per_question: NDArray[np.float64]) -> Estimate:
    """Return the mean of one value per question, with its standard error."""
    return Estimate(*mean_and_standard_error(per_question), len(per_question))


def score(responses: pa.Table) -> list[Scores]:
    """Score every task under every budget.

    Args:
      responses: `COLUMNS` of `schemas.EVALUATION`, rows in any order.

    Returns:
      Tasks in order of first appearance, budgets ascending.
    """
    lengths = pc.list_value_length(responses["token_ids"])
    rows = responses.drop_columns("token_ids").append_column("length", lengths)
    return [_score(task, budget, own) for task, budget, own in _split(rows)]


def _split(rows: pa.Table) -> Iterator[tuple[str | None, int | None, pa.Table]]:
    """Yield (task, budget, their rows)."""
    for task in pc.unique(rows["task"]).to_pylist():
        task_rows = rows.filter(_equal(rows["task"], task))
        for budget in sorted(pc.unique(task_rows["max_tokens"]).to_pylist(), key=lambda value: value or 0):
            yield task, budget, task_rows.filter(_equal(task_rows["max_tokens"], budget))


def _equal(column: pa.ChunkedArray, value: str | int | None) -> pa.ChunkedArray:
    """Return which values equal `value`; null equals None."""
    return pc.is_null(column) if value is None else pc.equal(column, value)


def _score(task: str | None, budget: int | None, rows: pa.Table) -> Scores:
    """Score one task under one budget, given one row per response."""
    encoded = rows["question_id"].combine_chunks().dictionary_encode()
    question, ids = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
    total, first = len(ids), np.unique(question, return_index=True)[1]
    graded = pc.is_valid(rows["reward"]).to_numpy()
    accuracies, samples = _accuracies(question, rows["answer"], rows["reward"].fill_null(0.0).to_numpy(), graded, total)
    return Scores(
        task=task,
        max_tokens=budget,
        samples=samples,
        question_ids=ids,
        groups={name: rows[name].take(pa.array(first)).to_pylist() for name in GROUPS},
        accuracies=accuracies,
        length=question_means(question, rows["length"].to_numpy(), total),
        no_answer=question_means(question, without_answer(rows), total),
        truncated=question_means(question, pc.equal(rows["finish_reason"], "length").to_numpy(), total),
        ungradable=np.bincount(question, weights=~graded, minlength=total).astype(np.int64),
    )


def _accuracies(
    question: NDArray[np.integer],
    answers: pa.ChunkedArray,
    rewards: NDArray[np.floating],
    graded: NDArray[np.bool_],
    total: int,
) -> tuple[dict[str, NDArray[np.float64]], int]:
    """Compute the accuracies of each question.

    There is no maj@k if no response has an answer although some earn a reward: there is nothing to vote on. A response
    with a reward of at least 1 passes. If only i < j responses to a question could be graded, its pass@j is its pass@i:
    a lower bound, with which pass@j never decreases in j.

    Args:
      question: [N] number of each response's question, from 0.
      answers, rewards, graded: [N] of each response.
      total: Q, the number of questions.

    Returns:
      Accuracies by name, [Q] each, and k, the maximum number of responses to a question.
    """
    k = int(np.bincount(question).max())
    names = answers.combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy()
    question, names, rewards = question[graded], names[graded], rewards[graded].astype(np.float64)
    count = np.bincount(question, minlength=total)
    scores = {f"avg@{k}": question_means(question, rewards, total)}
    if k > 1:
        passed = np.bincount(question, weights=rewards >= 1, minlength=total).astype(np.int64)
        if (names >= 0).any() or not rewards.any():
            scores[f"maj@{k}"] = maj_at_k(question, names, rewards, total)
        for j in [*(2**i for i in range(1, k.bit_length()) if 2**i < k), k]:
            scores[f"pass@{j}"] = pass_at_k(np.maximum(count, 1), passed, np.clip(count, 1, j))
    return {name: np.where(count > 0, values, np.nan) for name, values in scores.items()}, k
