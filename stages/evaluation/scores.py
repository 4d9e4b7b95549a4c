"""From graded responses to scores: accuracies, lengths and truncation per question; their means and standard errors.

A response that could not be graded (reward null) is left out of every accuracy and counted; it is never taken for a
wrong one. A question of which nothing could be graded is left out of the accuracies, and counted too.
"""

# pyarrow.compute makes its functions when it is imported, out of the type checker's sight.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages.maths.statistics import maj_at_k, mean_and_standard_error, pass_at_k, question_means

COLUMNS = ("task", "max_tokens", "question_id", "subject", "level", "token_ids", "finish_reason", "answer", "reward")
"""What the scores are made of."""

GROUPS = ("subject", "level")
"""What the questions of a task are told apart by."""


@dataclass(frozen=True)
class Estimate:
    """A mean over questions and its standard error, clustered by question; NaN where it cannot be told."""

    mean: float
    standard_error: float


@dataclass(frozen=True)
class Result:
    """What the questions of one task, or one group of them, came to under one budget.

    Attributes:
      task, max_tokens: None where the responses, brought from elsewhere, do not say.
      group: what the questions have in common beside the task, such as a subject; None: all of the task.
      samples: k, the responses per question (the most that a question has).
      accuracies: `avg@k`, and for k > 1 `maj@k`, `pass@2`, `pass@4` … `pass@k`; empty where nothing could be graded.
      length: tokens of a response. truncated: share of responses that the budget, or the context, cut off.
      ungradable: responses that the verifier came to no verdict about.
      unscored: questions of which no response could be graded.
    """

    task: str | None
    max_tokens: int | None
    group: str | None
    questions: int
    samples: int
    accuracies: dict[str, Estimate]
    length: Estimate
    truncated: Estimate
    ungradable: int
    unscored: int


@dataclass(frozen=True)
class Scores:
    """The questions of one task under one budget, one number each.

    Attributes:
      question_ids: [Q] in order of first appearance.
      groups: "subject" and "level" → [Q], None where the task tells none.
      accuracies: as in `Result`, by name → [Q]; NaN where none of the question's responses could be graded.
      length, truncated: [Q] means over its responses. ungradable: [Q] numbers of responses.
    """

    task: str | None
    max_tokens: int | None
    samples: int
    question_ids: list[str]
    groups: dict[str, list[str | None]]
    accuracies: dict[str, NDArray[np.float64]]
    length: NDArray[np.float64]
    truncated: NDArray[np.float64]
    ungradable: NDArray[np.int64]

    def result(self, chosen: NDArray[np.bool_] | None = None, group: str | None = None) -> Result:
        """The means over all questions, or over the chosen ones, which `group` names."""
        chosen = np.ones(len(self.question_ids), np.bool_) if chosen is None else chosen
        scored = chosen & ~np.isnan(next(iter(self.accuracies.values())))
        return Result(
            task=self.task,
            max_tokens=self.max_tokens,
            group=group,
            questions=int(chosen.sum()),
            samples=self.samples,
            accuracies={name: estimate(of[scored]) for name, of in self.accuracies.items() if scored.any()},
            length=estimate(self.length[chosen]),
            truncated=estimate(self.truncated[chosen]),
            ungradable=int(self.ungradable[chosen].sum()),
            unscored=int((chosen & ~scored).sum()),
        )

    def results_by(self, group: str) -> list[Result]:
        """One result for each subject, or level; none where they do not tell the questions apart."""
        values = self.groups[group]
        names = sorted({value for value in values if value is not None})
        if len(names) < 2:
            return []
        return [self.result(np.array([value == name for value in values]), name) for name in names]


def estimate(per_question: NDArray[np.float64]) -> Estimate:
    """The mean of one value per question, with its standard error."""
    return Estimate(*mean_and_standard_error(per_question))


def score(responses: pa.Table) -> list[Scores]:
    """The scores of every task under every budget: tasks in order of first appearance, budgets from the smallest.

    Args:
      responses: `COLUMNS` of `schemas.EVALUATION`, in any order.
    """
    lengths = pc.list_value_length(responses["token_ids"])
    rows = responses.drop_columns("token_ids").append_column("length", lengths)
    return [_score(task, budget, own) for task, budget, own in _split(rows)]


def _split(rows: pa.Table) -> Iterator[tuple[str | None, int | None, pa.Table]]:
    for task in pc.unique(rows["task"]).to_pylist():
        of_task = rows.filter(_equal(rows["task"], task))
        for budget in sorted(pc.unique(of_task["max_tokens"]).to_pylist(), key=lambda value: value or 0):
            yield task, budget, of_task.filter(_equal(of_task["max_tokens"], budget))


def _equal(column: pa.ChunkedArray, value: str | int | None) -> pa.ChunkedArray:
    return pc.is_null(column) if value is None else pc.equal(column, value)


def _score(task: str | None, budget: int | None, rows: pa.Table) -> Scores:
    """One task under one budget, one row per response."""
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
    """Accuracies by name, [Q] each, and k.

    Where no response states an answer, and yet some earn a reward, a vote says nothing: there is no maj@k.
    A response of reward 1 (or more) passes. Where fewer than j responses to a question could be graded, pass@j is that
    of as many as could: a lower bound, so that pass@j never shrinks as j grows.
    """
    k = int(np.bincount(question).max())
    names = answers.combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy()
    question, names, rewards = question[graded], names[graded], rewards[graded].astype(np.float64)
    count = np.bincount(question, minlength=total)
    scores = {f"avg@{k}": question_means(question, rewards, total)}
    if k > 1:
        right = np.bincount(question, weights=rewards >= 1, minlength=total).astype(np.int64)
        if (names >= 0).any() or not rewards.any():
            scores[f"maj@{k}"] = maj_at_k(question, names, rewards, total)
        for j in [*(2**i for i in range(1, k.bit_length()) if 2**i < k), k]:
            scores[f"pass@{j}"] = pass_at_k(np.maximum(count, 1), right, np.clip(count, 1, j))
    return {name: np.where(count > 0, values, np.nan) for name, values in scores.items()}, k
