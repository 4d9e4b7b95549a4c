"""Turn questions into prompts: prompt template, chat template, token ids.

The same text and token ids go to the model and into the rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from jinja2 import TemplateError

from stages.configs.shared import QuestionOptions
from stages.core.errors import UserError, first_line
from stages.core.progress import Progress
from stages.core.time_limit import time_limit
from stages.tasks import Question, Task
from stages.tasks.templates import SLOT, in_convention, read_template

if TYPE_CHECKING:  # transformers takes a second to import, and `spo show` reads trees without it
    from transformers import PreTrainedTokenizerBase

_TEMPLATE_SECONDS = 10.0
"""The longest time that a chat template may take for one question."""
Flags = TypeVar("Flags", bound=QuestionOptions)


class Prompts(NamedTuple):
    """Questions with their final prompts, and the token ids of these.

    Attributes:
      token_ids: int32 [P] per question.
    """

    questions: list[Question]
    token_ids: list[np.ndarray]


def with_template(flags: Flags) -> Flags:
    """Return the flags with the template's text in place of its name or file, so that the text enters the fingerprint.

    Raises:
      UserError: the template does not exist, the date is none, or there is a system prompt without a chat template.
    """
    if flags.system_prompt is not None and not flags.chat_template:
        raise UserError("--system-prompt requires the tokenizer's chat template: pass --chat-template too")
    try:
        date.fromisoformat(flags.chat_date)
    except ValueError as error:
        raise UserError(f"--chat-date must be a date such as 2024-07-26; got {flags.chat_date!r}") from error
    if flags.prompt_template is None:
        return flags
    return dataclasses.replace(flags, prompt_template=read_template(flags.prompt_template))


def make_prompts(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    task: Task,
    flags: QuestionOptions,
) -> Prompts:
    """Return the questions with their final prompts, and the token ids of these.

    Args:
      flags: as `with_template` returns them.

    Raises:
      UserError: a prompt is empty; also as `write_prompts`.
    """
    written = write_prompts(tokenizer, questions, task, flags)
    texts = [question.prompt for question in written]
    prompts = [np.asarray(ids, np.int32) for ids in encode(tokenizer, texts, chat=flags.chat_template)]
    for question, prompt in zip(written, prompts, strict=True):
        if prompt.size == 0:
            raise UserError(f"question {question.id} has an empty prompt; every prompt needs at least one token")
    return Prompts(written, prompts)


def leave_out_overlong(prompts: Sequence[Prompts], context_length: int, overlong: str) -> list[Prompts]:
    """Return the prompts of each chunk without those that leave no room for a response.

    Args:
      context_length: of the model, in tokens.
      overlong: "skip", or "error" to raise for the first such prompt.

    Raises:
      UserError: there is such a prompt and `overlong` is "error", or there is no other.
    """
    questions = [question for chunk in prompts for question in chunk.questions]
    sizes = [ids.size for chunk in prompts for ids in chunk.token_ids]
    too_long = [i for i, size in enumerate(sizes) if size >= context_length]
    if too_long and (overlong == "error" or len(too_long) == len(sizes)):
        which = "a prompt leaves" if len(too_long) < len(sizes) else f"all {len(sizes):,} prompts leave"
        raise UserError(
            f"{which} no room for a response: question {questions[too_long[0]].id} is {sizes[too_long[0]]} tokens long "
            f"and the model's context holds {context_length}. Use a longer context (--max-model-len, or another model)"
            + ("; --overlong-prompts skip leaves such questions out" if len(too_long) < len(sizes) else "")
        )
    return [
        Prompts(
            [question for question, ids in zip(*chunk, strict=True) if ids.size < context_length],
            [ids for ids in chunk.token_ids if ids.size < context_length],
        )
        for chunk in prompts
    ]


def count_overlong(written: Prompts, kept: Prompts) -> dict[str, int]:
    """Count the questions of a chunk that `leave_out_overlong` left out; {} if there are none."""
    count = len(written.questions) - len(kept.questions)
    return {"prompts_overlong": count} if count else {}


def ending_notes(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompts]) -> tuple[str, ...]:
    """Return a line for the user if the tokenizer ends prompts with the end-of-text token."""
    ends = [bool(ids[-1] == tokenizer.eos_token_id) for chunk in prompts for ids in chunk.token_ids]
    if not ends or not all(ends):
        return ()
    return (
        f"every prompt ends with the end token {tokenizer.eos_token}: the tokenizer's post-processor or the template "
        "appends it, and the model continues a text that has ended",
    )


def overlong_notes(counts: Iterable[Mapping[str, int]]) -> tuple[str, ...]:
    """Return a line for the user if questions were left out, given the counts of all parts."""
    total = sum(one.get("prompts_overlong", 0) for one in counts)
    return (f"{total:,} questions were left out: their prompts leave no room for a response in the context",) * bool(
        total
    )


def note_short_context(prompts: Sequence[Prompts], context: int, max_tokens: int, progress: Progress) -> None:
    """Report how many questions have prompts after which the context ends responses before `max_tokens`."""
    limited = sum(ids.size + max_tokens > context for chunk in prompts for ids in chunk.token_ids)
    if limited:
        progress.note(
            f"the context of {context:,} tokens ends responses to {limited:,} questions before {max_tokens:,} tokens"
        )


def check_vocabulary(prompts: Sequence[Prompts], size: int) -> None:
    """Check that a model knows every token of the prompts of all chunks.

    Args:
      size: number of token ids that the model knows.

    Raises:
      UserError: the tokenizer gave an id that the model does not know.
    """
    for question, prompt in (pair for chunk in prompts for pair in zip(*chunk, strict=True)):
        check_tokens(prompt, size, f"the prompt of question {question.id}")


def check_tokens(tokens: np.ndarray, size: int, where: str) -> None:
    """Check that a model knows every token of one text.

    Args:
      tokens: integers [T].
      size: number of token ids that the model knows.
      where: name of the text, for the message.

    Raises:
      UserError: the tokenizer gave an id that the model does not know.
    """
    if tokens.size and tokens.max() >= size:
        raise UserError(
            f"{where} has token {tokens.max()}, but the model knows {size} tokens: its tokenizer belongs to another "
            "model, or has tokens that were added after training"
        )


def write_prompts(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], task: Task, flags: QuestionOptions
) -> list[Question]:
    """Return the questions with the text that the model reads as their `prompt`.

    A solution starts with the space that separates it from the prompt. The space is removed if the prompt ends in white
    space or in the opening of a chat turn.

    Raises:
      UserError: --chat-template without a chat template in the tokenizer; a chat template that rejects the messages; a
        conversation without --chat-template.
    """
    template = flags.prompt_template or (task.chat_message if flags.chat_template else task.template)
    if flags.chat_template and not tokenizer.chat_template:
        raise UserError(
            "the model's tokenizer has no chat template: omit --chat-template; if the model needs turns, write "
            "them into a --prompt-template"
        )
    written = []
    for question in questions:
        text = template.replace(SLOT, question.prompt)
        if flags.chat_template:
            text = _render_chat(tokenizer, question, text, flags)
        elif question.history:
            raise UserError(f"question {question.id} is a conversation of several messages: pass --chat-template")
        solution = None if question.solution is None else in_convention(question.solution, template)
        if solution is not None and (flags.chat_template or text[-1:].isspace()):
            solution = solution.lstrip()
        written.append(dataclasses.replace(question, prompt=text, solution=solution))
    return written


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, chat: bool) -> list[list[int]]:
    """Return the token ids of texts that start with prompts of one template, special tokens included.

    A chat template writes all its special tokens itself, and a prompt template may start with the begin-of-text token.
    In both cases the tokenizer must not add special tokens, or there would be two begin-of-text tokens.
    """
    if not texts:
        return []
    begin = tokenizer.bos_token
    has_special_tokens = chat or bool(begin and texts[0].startswith(str(begin)))
    return tokenizer(list(texts), add_special_tokens=not has_special_tokens, verbose=False)["input_ids"]  # type: ignore[return-value]


def _render_chat(tokenizer: PreTrainedTokenizerBase, question: Question, text: str, flags: QuestionOptions) -> str:
    """Return the conversation that ends with the user message `text`, up to the start of the model's turn.

    A template that asks for today's date with `strftime_now` gets the date of the flags, so that prompts made on
    different days are equal.
    """
    system, day = flags.system_prompt, datetime.fromisoformat(flags.chat_date)
    messages = [{"role": role, "content": content} for role, content in (*question.history, ("user", text))]
    if system is not None:
        if messages[0]["role"] == "system":
            raise UserError(f"question {question.id} has a system message of its own: omit --system-prompt")
        messages.insert(0, {"role": "system", "content": system})
    return render_messages(tokenizer, messages, day, f"question {question.id}")


def render_messages(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], day: datetime, location: str
) -> str:
    """Return a conversation in the tokenizer's chat template, up to the start of the model's turn.

    Args:
      day: the date that `strftime_now` writes.
      location: where the messages are, for errors.

    Raises:
      UserError: the template rejects the messages, or does not end in time.
    """
    try:
        with time_limit(_TEMPLATE_SECONDS, "it"):
            return str(
                tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True, strftime_now=day.strftime
                )
            )
    except Exception as error:  # a template is code from the model's author and may raise anything
        reason = first_line(error) if isinstance(error, TemplateError | ValueError) else repr(error)
        raise UserError(f"the tokenizer's chat template rejects {location}: {reason}") from error
