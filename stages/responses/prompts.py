"""From questions to prompts: template, chat template, token ids. What the model is given, and what a row records."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from stages.configs.shared import QuestionFlags
from stages.core.errors import UserError
from stages.tasks import Question, Task
from stages.tasks.templates import SLOT, read_template

Flags = TypeVar("Flags", bound=QuestionFlags)


def with_template(flags: Flags) -> Flags:
    """The flags with the template's text in place of its name or file, so that the text enters the fingerprint.

    Raises:
      UserError: a template that is not there, or a system prompt without a chat template to put it in.
    """
    if flags.system_prompt is not None and not flags.chat_template:
        raise UserError("--system-prompt is written by the tokenizer's chat template: pass --chat-template as well")
    if flags.prompt_template is None:
        return flags
    return dataclasses.replace(flags, prompt_template=read_template(flags.prompt_template))


def make_prompts(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    task: Task,
    flags: QuestionFlags,
    context_length: int,
) -> tuple[list[Question], list[np.ndarray]]:
    """The questions as the model reads them, and the token ids of their prompts, int32 [P] each.

    Args:
      flags: as `with_template` returns them.

    Raises:
      UserError: a prompt that is empty, or leaves no room for a response in the context; as `write_prompts`.
    """
    written = write_prompts(tokenizer, questions, task, flags)
    texts = [question.prompt for question in written]
    prompts = [np.asarray(ids, np.int32) for ids in encode(tokenizer, texts, chat=flags.chat_template)]
    for question, prompt in zip(written, prompts, strict=True):
        if prompt.size == 0:
            raise UserError(f"question {question.id} has an empty prompt; give every question at least one token")
        if prompt.size >= context_length:
            raise UserError(
                f"question {question.id} is {prompt.size} tokens long and the model's context holds {context_length}: "
                "no room for a response; leave the question out or take a model with a longer context"
            )
    return written, prompts


def write_prompts(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], task: Task, flags: QuestionFlags
) -> list[Question]:
    """The questions with the text that the model reads as their `prompt`.

    A solution begins with the space between it and the prompt; where the prompt ends in white space or in the opening
    of a chat's turn, there is none.

    Raises:
      UserError: a chat template is asked for and the tokenizer has none, or it does not take the messages; a question
        is a conversation and no chat template is asked for.
    """
    template = flags.prompt_template or (task.chat_message if flags.chat_template else task.template)
    if flags.chat_template and not tokenizer.chat_template:
        raise UserError(
            "the model's tokenizer has no chat template: leave out --chat-template, and write the turns into a "
            "--prompt-template where the model needs them"
        )
    written = []
    for question in questions:
        text = template.replace(SLOT, question.prompt)
        if flags.chat_template:
            text = _chat(tokenizer, question, text, flags.system_prompt)
        elif question.history:
            raise UserError(f"question {question.id} is a conversation of several messages: pass --chat-template")
        solution = question.solution
        if solution is not None and (flags.chat_template or text[-1:].isspace()):
            solution = solution.lstrip()
        written.append(dataclasses.replace(question, prompt=text, solution=solution))
    return written


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, chat: bool) -> list[list[int]]:
    """Token ids of texts that begin with prompts of one template, with the special tokens that belong around them.

    A chat template writes all of its special tokens itself, and a template may begin with the begin-of-text token:
    then the tokenizer adds none, which would be one too many.
    """
    if not texts:
        return []
    begin = tokenizer.bos_token
    written_out = chat or bool(begin and texts[0].startswith(str(begin)))
    return tokenizer(list(texts), add_special_tokens=not written_out, verbose=False)["input_ids"]  # type: ignore[return-value]


def _chat(tokenizer: PreTrainedTokenizerBase, question: Question, text: str, system: str | None) -> str:
    """A conversation that ends with the user's message `text`, up to where the model's turn begins."""

    messages = [{"role": role, "content": content} for role, content in (*question.history, ("user", text))]
    if system is not None:
        if messages[0]["role"] == "system":
            raise UserError(f"question {question.id} has a system message of its own: leave out --system-prompt")
        messages.insert(0, {"role": "system", "content": system})
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except (TemplateError, ValueError) as error:
        raise UserError(f"the tokenizer's chat template does not take question {question.id}: {error}") from error
