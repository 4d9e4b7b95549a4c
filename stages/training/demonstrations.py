"""Worked solutions as training examples: which are taken, how they become token ids, and in which batches they come."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from stages.configs.shared import QuestionOptions
from stages.core.errors import UserError
from stages.maths.randomness import random_key, uniforms
from stages.optimization.batches import Example
from stages.responses.prompts import encode, write_prompts
from stages.tasks import MAX_FINITE_SPLIT, Task

_WINDOW = 64
"""Batches whose examples are sorted by length together: little padding, and the order stays random."""


def load_examples(
    task: Task,
    flags: QuestionOptions,
    count: int | None,
    tokenizer: PreTrainedTokenizerBase,
    context_length: int,
) -> tuple[list[Example], tuple[str, ...]]:
    """The first `count` demonstrations of a split (None: all) that fit the context, and notes on what was left out.

    Args:
      flags: the split, and how its questions are put, as `stages.responses.prompts.with_template` returns them.

    Raises:
      UserError: none is left, or the split does not have so many; as `stages.responses.prompts.write_prompts`.
    """
    split = flags.split
    stream = task.questions(split)
    if count is None and len(stream) > MAX_FINITE_SPLIT:
        raise UserError(f"the {split} split of {task.name} is a stream without end: pass --num-examples or --steps")
    if count is not None and count > len(stream):
        raise UserError(
            f"the {split} split of {task.name} has {len(stream):,} questions; --num-examples {count} asks more"
        )
    questions = write_prompts(tokenizer, stream[:count], task, flags)
    pairs = [(question.prompt, question.solution) for question in questions if question.solution is not None]
    if not pairs:
        raise UserError(f"the {split} split of task {task.name} has no worked solutions to learn from")
    examples = encode_examples(tokenizer, pairs, chat=flags.chat_template)
    short = [example for example in examples if example.tokens.size <= context_length]
    if not short:
        raise UserError(
            f"every example is longer than the model's context of {context_length} tokens "
            f"(the shortest has {min(example.tokens.size for example in examples)}); take a model with a longer one"
        )
    left_out = {
        "questions without a worked solution": len(questions) - len(pairs),
        f"examples longer than the context of {context_length} tokens": len(pairs) - len(short),
    }
    return short, tuple(f"left out {number} {what}" for what, number in left_out.items() if number)


def encode_examples(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]], *, chat: bool = False
) -> list[Example]:
    """Demonstrations as token ids: the prompt as a rollout reads it, the response behind it, the end token.

    Prompt and solution are tokenised as one text. Where a token would reach over the border between them, so that
    the prompt would not be the one that a rollout reads, the two are tokenised apart.
    """
    end = tokenizer.eos_token_id
    prompts = encode(tokenizer, [prompt for prompt, _ in pairs], chat=chat)
    wholes = encode(tokenizer, [prompt + solution for prompt, solution in pairs], chat=chat)
    examples = []
    for prompt, whole, (_, solution) in zip(prompts, wholes, pairs, strict=True):
        if not prompt:
            raise UserError("an empty prompt cannot be learned from; give every question at least one token")
        if whole[: len(prompt)] != prompt:
            whole = prompt + tokenizer(solution, add_special_tokens=False)["input_ids"]
        tokens = np.asarray(whole if whole[-1] == end else [*whole, end], np.int32)
        kept = np.arange(len(prompt), tokens.size)
        examples.append(Example(tokens, kept, advantages=np.ones(kept.size), response_tokens=kept.size))
    return examples


def plan_batches(examples: Sequence[Example], batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Indices of the epoch's batches: a shuffle, sorted by length within windows, cut, the batches shuffled again."""

    def shuffled(count: int, what: str) -> np.ndarray:
        return np.argsort(uniforms(random_key(seed, "sft", what, epoch), np.arange(count)), kind="stable")

    order = shuffled(len(examples), "examples")
    lengths = np.array([example.tokens.size for example in examples])[order]
    window = np.arange(order.size) // (_WINDOW * batch_size)
    order = order[np.lexsort((lengths, window))]
    batches = [order[start : start + batch_size] for start in range(0, order.size, batch_size)]
    return [batches[index] for index in shuffled(len(batches), "batches")]
