"""Turn the worked solutions of a task into training examples for `spo sft`, and divide them into batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from stages.configs.shared import QuestionOptions
from stages.core.errors import UserError
from stages.maths.randomness import random_key, uniforms
from stages.optimization.batches import Example
from stages.responses.prompts import check_tokens, encode, write_prompts
from stages.tasks import MAX_FINITE_SPLIT, Task

_WINDOW = 64
"""Batches per window. Examples are sorted by length within a window: little padding, and the order stays random."""


def load_examples(
    task: Task,
    flags: QuestionOptions,
    count: int | None,
    tokenizer: PreTrainedTokenizerBase,
    context_length: int,
    vocabulary: int,
) -> tuple[list[Example], tuple[str, ...]]:
    """Return the demonstrations that fit the context, and notes for the user about those that are left out.

    Args:
      flags: the split and the prompt options, as `stages.responses.prompts.with_template` returns them.
      count: number of questions, from the start of the split; None: all.
      context_length: maximum number of tokens of an example, prompt and solution together.
      vocabulary: number of token ids that the model knows.

    Raises:
      UserError: the split has fewer questions than `count`, no example is left, or one has an unknown token; as
        `stages.responses.prompts.write_prompts`.
    """
    split = flags.split
    stream = task.questions(split)
    if count is None and len(stream) > MAX_FINITE_SPLIT:
        raise UserError(f"the {split} split of {task.name} is an endless stream: pass --num-examples or --steps")
    if count is not None and count > len(stream):
        raise UserError(
            f"the {split} split of {task.name} has {len(stream):,} questions; expected --num-examples of at most that, "
            f"got {count}"
        )
    questions = write_prompts(tokenizer, stream[:count], task, flags)
    pairs = [(question.prompt, question.solution) for question in questions if question.solution is not None]
    if not pairs:
        raise UserError(f"the {split} split of task {task.name} has no worked solutions to learn from")
    examples = encode_examples(tokenizer, pairs, chat=flags.chat_template)
    solved = (question for question in questions if question.solution is not None)
    for question, example in zip(solved, examples, strict=True):
        check_tokens(example.tokens, vocabulary, f"the worked solution of question {question.id}")
    short = [example for example in examples if example.tokens.size <= context_length]
    if not short:
        raise UserError(
            f"every example is longer than the model's context of {context_length} tokens "
            f"(the shortest has {min(example.tokens.size for example in examples)}); pass a model with a longer context"
        )
    left_out = {
        "questions without a worked solution": len(questions) - len(pairs),
        f"examples longer than the context of {context_length} tokens": len(pairs) - len(short),
    }
    return short, tuple(f"left out {number} {what}" for what, number in left_out.items() if number)


def encode_examples(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]], *, chat: bool = False
) -> list[Example]:
    """Return demonstrations as token ids: the prompt as in a rollout, the solution, the end token.

    Prompt and solution are tokenized as one text. If a token would span the border between them, so that the prompt
    would differ from the one of a rollout, they are tokenized separately.

    Args:
      pairs: prompt and solution of each demonstration.
      chat: whether prompts are in the tokenizer's chat template.

    Raises:
      UserError: a prompt is empty.
    """
    end = tokenizer.eos_token_id
    prompts = encode(tokenizer, [prompt for prompt, _ in pairs], chat=chat)
    wholes = encode(tokenizer, [prompt + solution for prompt, solution in pairs], chat=chat)
    examples = []
    for prompt, whole, (_, solution) in zip(prompts, wholes, pairs, strict=True):
        if not prompt:
            raise UserError("a question has an empty prompt; expected at least one token before the solution")
        if whole[: len(prompt)] != prompt:
            whole = prompt + tokenizer(solution, add_special_tokens=False)["input_ids"]
        tokens = np.asarray(whole if whole[-1] == end else [*whole, end], np.int32)
        kept = np.arange(len(prompt), tokens.size)
        examples.append(Example(tokens, kept, advantages=np.ones(kept.size), response_tokens=kept.size))
    return examples


def plan_batches(examples: Sequence[Example], batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Return the indices of the examples of each batch of an epoch.

    The examples are shuffled, sorted by length within windows, and divided into batches; then the batches are shuffled.
    """

    def shuffled(count: int, purpose: str) -> np.ndarray:
        return np.argsort(uniforms(random_key(seed, "sft", purpose, epoch), np.arange(count)), kind="stable")

    order = shuffled(len(examples), "examples")
    lengths = np.array([example.tokens.size for example in examples])[order]
    window = np.arange(order.size) // (_WINDOW * batch_size)
    order = order[np.lexsort((lengths, window))]
    batches = [order[start : start + batch_size] for start in range(0, order.size, batch_size)]
    return [batches[index] for index in shuffled(len(batches), "batches")]
