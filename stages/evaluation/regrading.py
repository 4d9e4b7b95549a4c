"""`spo eval --regrade`: grade the saved responses of an evaluation again, without sampling → eval/.

Every part has the same rows as the original part, with new answers and rewards; its lineage names the original
evaluation. With --max-tokens, the longest saved responses are truncated to the new budgets.
"""

# pyarrow.compute makes its functions at import time:
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.configs.choices import pair_tasks
from stages.configs.regrade import Config
from stages.core.errors import UserError
from stages.core.paths import is_path_reference, relative_path
from stages.core.progress import Progress, Silent, Summary
from stages.evaluation.summaries import score_accuracies, summarize
from stages.models import checkpoints, loading
from stages.responses.grading import decode, grade_texts
from stages.shards.lineage import Source, describe, task_source
from stages.shards.origin import foreign_notes, sampling_model
from stages.shards.parts import Artefact, artefact_source, open_artefact
from stages.shards.schemas import EVALUATION
from stages.shards.sharding import resolve_shards, split
from stages.shards.tables import ragged
from stages.shards.writing import open_part
from stages.tasks import Task, open_task

Decode = Callable[[Sequence[np.ndarray]], list[str]]
"""Turns token ids, int32 [T] per response, into texts."""

_ROWS = 16_384  # graded between two updates of the progress display


def run(config: Config, progress: Progress = Silent()) -> Summary:
    """Grade this shard's parts again; part i of the input becomes part i of the output.

    Raises:
      UserError: the input is not an evaluation, its task is unknown or lacks an option, or a budget exceeds the longest
        that was sampled.
      IncompleteInput: parts of the evaluation are missing or corrupt.
    """
    started = time.monotonic()
    saved = open_artefact(config.regrade, EVALUATION)
    config, tasks, budgets = _resolve(config, saved)
    decode = _decoder(config, saved)
    task_sources = tuple(task_source(str(name), None, task.digest, config.out) for name, task in tasks.items())
    mine = [saved.parts[i] for i in split(len(saved.parts), *resolve_shards(config))]
    written = []
    for part in mine:
        inputs = (artefact_source(saved, config.out, part), *task_sources)
        lineage = describe("eval", EVALUATION, config, inputs, _model(config, saved))
        with open_part(
            config.out, part.index, part.count, lineage, EVALUATION, overwrite=config.overwrite, progress=progress
        ) as writer:
            if not writer.up_to_date:
                rows = saved.read(part, EVALUATION.names)
                rows = truncate_rows(rows, budgets) if config.max_tokens else rows
                progress.start("regrade", rows.num_rows, "rows")
                graded = pa.concat_tables(_graded(rows, tasks, decode, progress))
                accuracies = score_accuracies(graded, tasks=len(tasks), budgets=len(budgets))
                writer.write(graded, {"ungradable": graded["reward"].null_count}, accuracies)
        written.append(writer)
    return summarize(written, config.out, started, notes=foreign_notes(saved))


def _graded(
    rows: pa.Table, tasks: Mapping[str | None, Task], decode: Decode | None, progress: Progress
) -> Iterator[pa.Table]:
    """Yield the rows as `grade_rows` returns them, some at a time, and report the progress."""
    for first in range(0, max(rows.num_rows, 1), _ROWS):
        batch = rows.slice(first, _ROWS)
        yield grade_rows(batch, tasks, decode)
        progress.advance(batch.num_rows)


def grade_rows(rows: pa.Table, tasks: Mapping[str | None, Task], decode: Decode | None) -> pa.Table:
    """Return the rows with new answers and rewards from the verifiers of their tasks.

    Args:
      rows: of `schemas.EVALUATION`.
      tasks: by name; the task under None grades the rows whose task is null.
      decode: used for rows whose text is null.
    """
    rows = _with_texts(rows, decode)
    answers, rewards = [None] * rows.num_rows, [None] * rows.num_rows
    for name, task in tasks.items():
        is_member = pc.is_null(rows["task"]) if name is None else pc.equal(rows["task"], name)
        members = pc.indices_nonzero(is_member.combine_chunks().fill_null(False))
        texts, finish_reasons, references = (
            rows[column].take(members).to_pylist() for column in ("text", "finish_reason", "reference")
        )
        grades = grade_texts(task, texts, finish_reasons, references)
        for row, grade in zip(members.to_pylist(), grades, strict=True):
            answers[row], rewards[row] = grade.answer, grade.reward
    names = pc.fill_null(rows["task"], next(iter(tasks.values())).name)
    columns = {"task": names, "answer": pa.array(answers), "reward": pa.array(rewards, pa.float32())}
    for name, values in columns.items():
        rows = rows.set_column(rows.column_names.index(name), name, values)
    return rows


def truncate_rows(rows: pa.Table, budgets: Sequence[int]) -> pa.Table:
    """Return one row for each response under each budget, ascending, made from the rows of the largest saved budget.

    A response longer than a budget ends there, unfinished; its text is null, to be decoded later.
    """
    whole = rows.filter(pc.equal(rows["max_tokens"], pc.max(rows["max_tokens"])))
    lengths = pc.list_value_length(whole["token_ids"])
    tables = []
    for budget in budgets:
        longer = pc.greater(lengths, budget)
        values = {
            "max_tokens": pa.repeat(pa.scalar(budget, pa.int32()), whole.num_rows),
            "token_ids": pc.list_slice(whole["token_ids"], 0, budget),
            "logprobs": pc.list_slice(whole["logprobs"], 0, budget),
            "text": pc.if_else(longer, None, whole["text"]),
            "finish_reason": pc.if_else(longer, "length", whole["finish_reason"]),
        }
        columns = {name: values.get(name, whole[name]) for name in whole.column_names}
        tables.append(pa.table(columns).cast(whole.schema))
    # From budget by budget to response by response, as `spo eval` writes the rows.
    order = np.arange(len(budgets) * whole.num_rows).reshape(len(budgets), -1).T.ravel()
    return pa.concat_tables(tables).take(pa.array(order))


def _with_texts(rows: pa.Table, decode: Decode | None) -> pa.Table:
    """Return the rows with missing texts decoded from the tokens."""
    missing = pc.indices_nonzero(pc.is_null(rows["text"]).combine_chunks())
    if not len(missing) or decode is None:
        return rows
    decoded = decode(list(ragged(rows["token_ids"].take(missing))))
    texts = rows["text"].to_pylist()
    for row, text in zip(missing.to_pylist(), decoded, strict=True):
        texts[row] = text
    return rows.set_column(rows.column_names.index("text"), "text", pa.array(texts, pa.string()))


def _resolve(config: Config, saved: Artefact) -> tuple[Config, dict[str | None, Task], list[int]]:
    """Fill in the options that default to those of the evaluation.

    Returns:
      The options, the tasks by their name in the responses, and the budgets of the new evaluation, ascending.

    Raises:
      UserError: the task of the responses is not recorded or differs from --task, or a budget exceeds the saved ones.
    """
    recorded_values = saved.read_all(["task", "max_tokens"])
    names = pc.unique(recorded_values["task"]).to_pylist()
    saved_budgets = sorted(pc.unique(recorded_values["max_tokens"].drop_null()).to_pylist())
    chosen = list(config.task) if None in names else names
    if (None in names and len(chosen) != 1) or (config.task and sorted(config.task) != sorted(chosen)):
        problem = "do not record their task: name it with --task" if None in names else f"are of {', '.join(names)}"
        raise UserError(f"the responses of {config.regrade} {problem}; --task names {' '.join(config.task) or 'none'}")
    budgets = sorted(set(config.max_tokens or saved_budgets))
    if config.max_tokens and budgets[-1] > max(saved_budgets, default=0):
        longest = f"up to {saved_budgets[-1]} tokens" if saved_budgets else "with an unrecorded budget"
        raise UserError(
            f"the responses of {config.regrade} were sampled {longest}; --max-tokens requests {budgets[-1]}"
        )
    recorded: dict[str, Any] = saved.lineage.config if saved.lineage else {}
    args = tuple(recorded.get("task_arg", ())) if config.task_arg is None else config.task_arg
    opened = [open_task(*choice) for choice in pair_tasks(chosen, (), args)]
    tasks = dict(zip(names, opened, strict=True))
    # Budgets of the saved evaluation stay unset: they are recorded there.
    max_tokens = tuple(budgets) if config.max_tokens else None
    return dataclasses.replace(config, task=tuple(chosen), task_arg=args, max_tokens=max_tokens), tasks, budgets


def _decoder(config: Config, saved: Artefact) -> Decode | None:
    """Return a function that decodes tokens; None if no text must be decoded.

    Texts are decoded for truncated responses, and for responses that another tool saved without text.

    Raises:
      UserError: no tokenizer is given or recorded.
    """
    made_by_spo = all(part.lineage for part in saved.parts)
    if config.max_tokens is None and (made_by_spo or not saved.read_all(["text"])["text"].null_count):
        return None
    model = config.tokenizer or sampling_model(saved, "--tokenizer")
    if model is None:
        raise UserError(
            f"{saved.path} does not record the model that sampled it: pass --tokenizer MODEL to decode its tokens"
        )
    tokenizer = loading.load_tokenizer(checkpoints.resolve(model))
    return lambda responses: decode(tokenizer, responses)


def _model(config: Config, saved: Artefact) -> Source | None:
    """Return the model that sampled the responses, with a path relative to the new artefact."""
    model = saved.lineage and saved.lineage.model
    if not model:
        return None
    path = saved.locate(model.path)
    is_file = path.exists() or is_path_reference(model.path)
    return Source(relative_path(path, config.out) if is_file else model.path, model.fingerprint, "model")
