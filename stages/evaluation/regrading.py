"""`spo eval --regrade`: the saved responses of an evaluation are graded again, nothing is sampled → eval/.

The same rows with new answers and rewards, part by part; the lineage says which evaluation they were sampled for. With
other budgets the responses are cut off anew, from the longest that was saved.
"""

# pyarrow.compute makes its functions when it is imported, out of the type checker's sight.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.configs.choices import pair
from stages.configs.regrade import Config
from stages.core.errors import UserError
from stages.core.paths import is_path_reference, relative_path
from stages.core.progress import Progress, Silent, Summary
from stages.evaluation.summaries import score_accuracies, summarise
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

if TYPE_CHECKING:
    Decode = Callable[[Sequence[np.ndarray]], list[str]]

_ROWS = 16_384  # graded at once


def run(config: Config, progress: Progress = Silent()) -> Summary:
    """Grades this shard's parts; each part becomes the part of the same number.

    Raises:
      UserError: no evaluation, a task that cannot be told or has no such option, a budget beyond what was sampled.
      IncompleteInput: parts of the evaluation are missing or torn.
    """

    started = time.monotonic()
    saved = open_artefact(config.regrade, EVALUATION)
    config, tasks, budgets = _complete(config, saved)
    decode = _decoder(config, saved)
    places = tuple(task_source(str(name), None, task.digest, config.out) for name, task in tasks.items())
    mine = [saved.parts[i] for i in split(len(saved.parts), *resolve_shards(config))]
    written = []
    for part in mine:
        inputs = (artefact_source(saved, config.out, part), *places)
        lineage = describe("eval", EVALUATION, config, inputs, _model(config, saved))
        with open_part(
            config.out, part.index, part.count, lineage, EVALUATION, overwrite=config.overwrite, progress=progress
        ) as writer:
            if not writer.up_to_date:
                rows = saved.read(part, EVALUATION.names)
                rows = cut_anew(rows, budgets) if config.max_tokens else rows
                progress.start("regrade", rows.num_rows, "rows")
                graded = pa.concat_tables(_graded(rows, tasks, decode, progress))
                told = score_accuracies(graded, tasks=len(tasks), budgets=len(budgets))
                writer.write(graded, {"ungradable": graded["reward"].null_count}, told)
        written.append(writer)
    return summarise(written, config.out, started, notes=foreign_notes(saved))


def _graded(
    rows: pa.Table, tasks: Mapping[str | None, Task], decode: Decode | None, progress: Progress
) -> Iterator[pa.Table]:
    """`grade_rows` of some at a time, as the reader of `progress` sees."""
    for first in range(0, max(rows.num_rows, 1), _ROWS):
        some = rows.slice(first, _ROWS)
        yield grade_rows(some, tasks, decode)
        progress.advance(some.num_rows)


def grade_rows(rows: pa.Table, tasks: Mapping[str | None, Task], decode: Decode | None) -> pa.Table:
    """The rows with the answers and rewards that their tasks' verifiers give now.

    Args:
      rows: of `schemas.EVALUATION`; where `text` is null, the tokens are decoded.
      tasks: by name; under None the one of rows that do not say theirs.
    """

    rows = _with_texts(rows, decode)
    answers, rewards = [None] * rows.num_rows, [None] * rows.num_rows
    for name, task in tasks.items():
        of_task = pc.is_null(rows["task"]) if name is None else pc.equal(rows["task"], name)
        places = pc.indices_nonzero(of_task.combine_chunks().fill_null(False))
        texts, finish_reasons, references = (
            rows[column].take(places).to_pylist() for column in ("text", "finish_reason", "reference")
        )
        grades = grade_texts(task, texts, finish_reasons, references)
        for place, grade in zip(places.to_pylist(), grades, strict=True):
            answers[place], rewards[place] = grade.answer, grade.reward
    told = pc.fill_null(rows["task"], next(iter(tasks.values())).name)
    for name, values in {"task": told, "answer": pa.array(answers), "reward": pa.array(rewards, pa.float32())}.items():
        rows = rows.set_column(rows.column_names.index(name), name, values)
    return rows


def cut_anew(rows: pa.Table, budgets: Sequence[int]) -> pa.Table:
    """A row for each response under each budget, ascending, in place of those under the budgets that were saved.

    A longer response ends at the budget, unfinished, and its text is left to be decoded. The rows of the largest saved
    budget are what is cut.
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
    order = np.arange(len(budgets) * whole.num_rows).reshape(len(budgets), -1).T.ravel()
    return pa.concat_tables(tables).take(pa.array(order))


def _with_texts(rows: pa.Table, decode: Decode | None) -> pa.Table:

    places = pc.indices_nonzero(pc.is_null(rows["text"]).combine_chunks())
    if not len(places) or decode is None:
        return rows

    decoded = decode(list(ragged(rows["token_ids"].take(places))))
    texts = rows["text"].to_pylist()
    for place, text in zip(places.to_pylist(), decoded, strict=True):
        texts[place] = text
    return rows.set_column(rows.column_names.index("text"), "text", pa.array(texts, pa.string()))


def _complete(config: Config, saved: Artefact) -> tuple[Config, dict[str | None, Task], list[int]]:
    """The options with what was left out taken from the evaluation; its tasks by name; the budgets of the new one.

    Raises:
      UserError: responses that do not say their task, or say another than is asked for; a budget beyond theirs.
    """

    told = saved.read_all(["task", "max_tokens"])
    names = pc.unique(told["task"]).to_pylist()
    saved_budgets = sorted(pc.unique(told["max_tokens"].drop_null()).to_pylist())
    asked = list(config.task) if None in names else names
    if (None in names and len(asked) != 1) or (config.task and sorted(config.task) != sorted(asked)):
        says = "do not say their task: name it with --task" if None in names else f"are of {', '.join(names)}"
        raise UserError(f"the responses of {config.regrade} {says}; --task names {' '.join(config.task) or 'none'}")
    budgets = sorted(set(config.max_tokens or saved_budgets))
    if config.max_tokens and budgets[-1] > max(saved_budgets, default=0):
        longest = f"up to {saved_budgets[-1]} tokens" if saved_budgets else "with a budget that they do not say"
        raise UserError(
            f"the responses of {config.regrade} were sampled {longest}; --max-tokens asks for {budgets[-1]}"
        )
    recorded: dict[str, Any] = saved.lineage.config if saved.lineage else {}
    args = tuple(recorded.get("task_arg", ())) if config.task_arg is None else config.task_arg
    opened = [open_task(*choice) for choice in pair(asked, (), args)]
    tasks = dict(zip(names, opened, strict=True))
    budgets_asked = tuple(budgets) if config.max_tokens else None
    return dataclasses.replace(config, task=tuple(asked), task_arg=args, max_tokens=budgets_asked), tasks, budgets


def _decoder(config: Config, saved: Artefact) -> Decode | None:
    """How tokens become texts, where any must: responses that are cut off anew, or that were saved without their text.

    Raises:
      UserError: the evaluation does not lead to a tokenizer.
    """

    ours = all(part.lineage for part in saved.parts)
    if config.max_tokens is None and (ours or not saved.read_all(["text"])["text"].null_count):
        return None
    model = config.tokenizer or sampling_model(saved, "--tokenizer")
    if model is None:
        raise UserError(f"{saved.path} does not say which model sampled it: pass --tokenizer MODEL to read its tokens")
    tokenizer = loading.load_tokenizer(checkpoints.resolve(model))
    return lambda responses: decode(tokenizer, responses)


def _model(config: Config, saved: Artefact) -> Source | None:
    """The model that sampled the responses, as seen from the new artefact, wherever it is now."""

    model = saved.lineage and saved.lineage.model
    if not model:
        return None
    there = saved.locate(model.path)
    is_file = there.exists() or is_path_reference(model.path)
    return Source(relative_path(there, config.out) if is_file else model.path, model.fingerprint, "model")
