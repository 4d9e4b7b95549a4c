"""From questions to graded responses: tokenise, sample, decode, verify. What `rollout`, `estimate` and `eval` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stages.engines.sampling import Request, Sample, Sampler, SamplingParams, Usage
from stages.errors import UserError
from stages.maths.randomness import random_key
from stages.tasks import Question, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Grade:
    """What became of a response: its text, the answer read from it (None: none found) and its reward."""

    text: str
    answer: str | None
    reward: float


@dataclass(frozen=True)
class Response:
    """Response number `index` to a question, as sampled and as graded."""

    question: Question
    index: int
    prompt_token_ids: np.ndarray
    sample: Sample
    grade: Grade


def tokenize_prompts(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], context_length: int
) -> list[np.ndarray]:
    """Prompt token ids, int32 [P] each, with the special tokens that the tokenizer puts around a text.

    Raises:
      UserError: a prompt that is empty, or leaves no room for a response in the context.
    """
    prompts = [np.asarray(tokenizer(question.prompt)["input_ids"], dtype=np.int32) for question in questions]
    for question, prompt in zip(questions, prompts, strict=True):
        if prompt.size == 0:
            raise UserError(f"question {question.id} has an empty prompt; give every question at least one token")
        if prompt.size >= context_length:
            raise UserError(
                f"question {question.id} is {prompt.size} tokens long and the model's context holds {context_length}: "
                "no room for a response; leave the question out or take a model with a longer context"
            )
    return prompts


def grade(
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    responses: Sequence[np.ndarray],
    finish_reasons: Sequence[str],
    references: Sequence[str],
) -> list[Grade]:
    """Decodes whole responses (int32 [T] each) and has the task verify them; an unfinished response earns 0."""
    texts = tokenizer.batch_decode(responses, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    grades = []
    for text, finish_reason, reference in zip(texts, finish_reasons, references, strict=True):
        verdict = task.verify(text, reference)
        grades.append(Grade(text, verdict.answer, verdict.reward if finish_reason == "stop" else 0.0))
    return grades


def respond(
    questions: Sequence[Question],
    prompts: Sequence[np.ndarray],
    num_generations: int,
    *,
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    params: SamplingParams,
    max_tokens: int,
    key: tuple[int | str, ...],
    on_tokens: Callable[[int, int], None] | None = None,
) -> tuple[list[Response], Usage]:
    """`num_generations` graded responses to each question, question by question.

    Args:
      prompts: int32 [P] token ids per question.
      key: what the random numbers belong to beside question and response number, e.g. (seed, "rollout").
    """
    requests = [
        Request(prompt, tuple(random_key(*key, question.id, i) for i in range(num_generations)), max_tokens)
        for question, prompt in zip(questions, prompts, strict=True)
    ]
    samples, usage = sampler.sample(requests, params, on_tokens)
    drawn = [
        (question, index, prompt, sample)
        for question, prompt, of_question in zip(questions, prompts, samples, strict=True)
        for index, sample in enumerate(of_question)
    ]
    grades = grade(
        tokenizer,
        task,
        [sample.token_ids for *_, sample in drawn],
        [sample.finish_reason for *_, sample in drawn],
        [question.reference for question, *_ in drawn],
    )
    return [Response(*row, graded) for row, graded in zip(drawn, grades, strict=True)], usage
