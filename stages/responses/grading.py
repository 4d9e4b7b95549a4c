"""Turn sampled tokens into rewards: decode the responses, and let the task verify their texts."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from stages.maths.length_penalty import soft_overlong_penalty
from stages.tasks import Task, Verdict

if TYPE_CHECKING:  # transformers takes a second to import, and `spo show` reads trees without it
    from transformers import PreTrainedTokenizerBase


_turn = threading.Lock()


@dataclass(frozen=True)
class Grade:
    """The verdict on one response.

    Attributes:
      text: the decoded response.
      answer: the answer that the verifier extracted; None if there is none.
      reward: None if the response cannot be graded.
    """

    text: str
    answer: str | None
    reward: float | None


@dataclass(frozen=True)
class LengthPenalty:
    """The soft penalty of responses that end in the last `buffer` tokens before `max_tokens`."""

    max_tokens: int
    buffer: int
    weight: float

    def of(self, lengths: Sequence[int]) -> list[float]:
        """Return what is added to the rewards of responses with these numbers of tokens."""
        return soft_overlong_penalty(lengths, self.max_tokens, self.buffer, self.weight).tolist()


def grade(
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    responses: Sequence[np.ndarray],
    finish_reasons: Sequence[str],
    references: Sequence[str],
    unfinished_reward: float = 0.0,
    penalty: LengthPenalty | None = None,
) -> list[Grade]:
    """Decode whole responses (int32 [T] each) and verify them, as `grade_texts` does, and add the length penalty."""
    grades = grade_texts(task, decode(tokenizer, responses), finish_reasons, references, unfinished_reward)
    if penalty is None:
        return grades
    added = penalty.of([response.size for response in responses])
    return [
        one if one.reward is None else replace(one, reward=one.reward + extra)
        for one, extra in zip(grades, added, strict=True)
    ]


def decode(tokenizer: PreTrainedTokenizerBase, responses: Sequence[np.ndarray]) -> list[str]:
    """Return the texts that verifiers read and artefacts store: without special tokens, otherwise unchanged."""
    if not responses:  # transformers decodes no responses to one empty text
        return []
    return tokenizer.batch_decode(
        [ids.tolist() for ids in responses], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def grade_texts(
    task: Task,
    texts: Sequence[str],
    finish_reasons: Sequence[str],
    references: Sequence[str],
    unfinished_reward: float = 0.0,
) -> list[Grade]:
    """Verify decoded responses.

    Args:
      finish_reasons: a response whose reason is not "stop" is unfinished; it earns `unfinished_reward`, whatever its
        text says.
      references: the reference answer to each response's question.
    """
    verdicts = verify_all(task, texts, references)
    return [
        Grade(text, verdict.answer, verdict.reward if finish_reason == "stop" else unfinished_reward)
        for text, verdict, finish_reason in zip(texts, verdicts, finish_reasons, strict=True)
    ]


def verify_all(task: Task, responses: Sequence[str], references: Sequence[str]) -> list[Verdict]:
    """Return the verdict on each response, from one call if the task implements `verify_all`.

    Threads take turns, because a user's reward function may not be safe to call from several.
    """
    with _turn:
        if isinstance(task, _BatchVerifier):
            return task.verify_all(responses, references)
        return [task.verify(*pair) for pair in zip(responses, references, strict=True)]


@runtime_checkable
class _BatchVerifier(Protocol):
    """A task with a verifier that is faster on many responses at once."""

    def verify_all(self, responses: Sequence[str], references: Sequence[str]) -> list[Verdict]: ...
