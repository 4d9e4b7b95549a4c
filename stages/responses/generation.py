"""From prompts to graded responses: sample, decode, verify. What `rollout` and `eval` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from stages.maths.randomness import random_key
from stages.responses.grading import Grade, grade
from stages.sampling.protocol import Request, Sample, Sampler, SamplingParams, Usage
from stages.tasks import Question, Task

OnTokens = Callable[[int, int], None]
"""Told (responses finished, tokens drawn) since the last call."""


@dataclass(frozen=True)
class Sampling:
    """What it takes to answer questions: the policy, how its tokens are chosen, and who grades.

    Attributes:
      max_tokens: longest response in tokens.
      key: what the random numbers belong to beside question and response number, e.g. (seed, "rollout").
      unfinished_reward: of a response that did not end within its limit.
    """

    sampler: Sampler
    tokenizer: PreTrainedTokenizerBase
    task: Task
    params: SamplingParams
    max_tokens: int
    key: tuple[int | str, ...]
    unfinished_reward: float = 0.0


@dataclass(frozen=True)
class Response:
    """Response number `index` to a question, as sampled and as graded."""

    question: Question
    index: int
    prompt_token_ids: np.ndarray
    sample: Sample
    grade: Grade


def respond(
    questions: Sequence[Question],
    prompts: Sequence[np.ndarray],
    sampling: Sampling,
    on_tokens: OnTokens,
    *,
    num_generations: int,
) -> tuple[list[Response], Usage]:
    """`num_generations` graded responses to each question, question by question.

    Args:
      prompts: int32 [P] token ids per question.
    """
    keys = [tuple(random_key(*sampling.key, question.id, i) for i in range(num_generations)) for question in questions]
    requests = [Request(prompt, of_one, sampling.max_tokens) for prompt, of_one in zip(prompts, keys, strict=True)]
    samples, usage = sampling.sampler.sample(requests, sampling.params, on_tokens)
    drawn = [
        (question, index, prompt, sample)
        for question, prompt, of_question in zip(questions, prompts, samples, strict=True)
        for index, sample in enumerate(of_question)
    ]
    grades = grade(
        sampling.tokenizer,
        sampling.task,
        [sample.token_ids for *_, sample in drawn],
        [sample.finish_reason for *_, sample in drawn],
        [question.reference for question, *_ in drawn],
        sampling.unfinished_reward,
    )
    return [Response(*row, graded) for row, graded in zip(drawn, grades, strict=True)], usage
