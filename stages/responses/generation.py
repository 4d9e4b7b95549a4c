"""Sample, decode and verify responses to prompts. Shared by `spo rollout` and `spo eval`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stages.maths.randomness import random_key
from stages.responses.grading import Grade, LengthPenalty, grade
from stages.sampling.protocol import OnTokens, Request, Sample, Sampler, SamplingParams, Usage
from stages.tasks import Question, Task

if TYPE_CHECKING:  # transformers takes a second to import, and `spo show` reads trees without it
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sampling:
    """The policy, its sampling parameters and the verifier: everything that turns prompts into graded responses.

    Attributes:
      sampler: the engine with the policy.
      task: verifies the responses.
      max_tokens: maximum length of a response, in tokens.
      key: prefix of every random key, e.g. (seed, "rollout"); question id and response number follow it.
      unfinished_reward: reward of a response that reaches its limit without ending.
      penalty: of long responses; None: none.
    """

    sampler: Sampler
    tokenizer: PreTrainedTokenizerBase
    task: Task
    params: SamplingParams
    max_tokens: int
    key: tuple[int | str, ...]
    unfinished_reward: float = 0.0
    penalty: LengthPenalty | None = None


@dataclass(frozen=True)
class Response:
    """Response number `index` to a question: its sample and its grade.

    Attributes:
      prompt_token_ids: int32 [P].
    """

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
    """Sample and grade `num_generations` responses to each question.

    Args:
      prompts: int32 [P] token ids per question.
      on_tokens: called with what was done since its last call; a response counts as a sample.

    Returns:
      The responses, question by question, and the tokens that the engine sampled and prefilled.
    """
    # The key names the response, so a response does not depend on the other questions of the call.
    keys = [tuple(random_key(*sampling.key, question.id, i) for i in range(num_generations)) for question in questions]
    requests = [
        Request(prompt, prompt_keys, sampling.max_tokens) for prompt, prompt_keys in zip(prompts, keys, strict=True)
    ]
    samples, usage = sampling.sampler.sample(requests, sampling.params, on_tokens)
    sampled = [
        (question, index, prompt, sample)
        for question, prompt, question_samples in zip(questions, prompts, samples, strict=True)
        for index, sample in enumerate(question_samples)
    ]
    grades = grade(
        sampling.tokenizer,
        sampling.task,
        [sample.token_ids for *_, sample in sampled],
        [sample.finish_reason for *_, sample in sampled],
        [question.reference for question, *_ in sampled],
        sampling.unfinished_reward,
        sampling.penalty,
    )
    return [Response(*row, result) for row, result in zip(sampled, grades, strict=True)], usage
