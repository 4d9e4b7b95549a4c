"""From sampled tokens to rewards: responses are decoded, and the task's verifier reads their texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from transformers import PreTrainedTokenizerBase

from stages.tasks import Task, Verdict


@dataclass(frozen=True)
class Grade:
    """What became of a response: its text, the answer read from it (None: none), its reward (None: ungradable)."""

    text: str
    answer: str | None
    reward: float | None


def grade(
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    responses: Sequence[np.ndarray],
    finish_reasons: Sequence[str],
    references: Sequence[str],
    unfinished_reward: float = 0.0,
) -> list[Grade]:
    """Decodes whole responses (int32 [T] each) and has the task verify them, as `grade_texts`."""
    return grade_texts(task, decode(tokenizer, responses), finish_reasons, references, unfinished_reward)


def decode(tokenizer: PreTrainedTokenizerBase, responses: Sequence[np.ndarray]) -> list[str]:
    """The texts that verifiers read and artefacts keep: special tokens left out, nothing else changed."""
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
    """Has the task verify decoded responses; an unfinished one earns `unfinished_reward`, whatever it says."""
    verdicts = verify_all(task, texts, references)
    return [
        Grade(text, verdict.answer, verdict.reward if finish_reason == "stop" else unfinished_reward)
        for text, verdict, finish_reason in zip(texts, verdicts, finish_reasons, strict=True)
    ]


def verify_all(task: Task, responses: Sequence[str], references: Sequence[str]) -> list[Verdict]:
    """A verdict on each response; all at once where the task has a `verify_all` of its own."""
    if isinstance(task, _VerifiesAll):
        return task.verify_all(responses, references)
    return [task.verify(*pair) for pair in zip(responses, references, strict=True)]


@runtime_checkable
class _VerifiesAll(Protocol):
    """A task whose verifier is faster on many responses than on each."""

    def verify_all(self, responses: Sequence[str], references: Sequence[str]) -> list[Verdict]: ...
