"""`spo eval`: k responses to each question of one or more tasks, graded under every budget → eval/.

Responses are sampled once, up to the largest budget, and cut off at the smaller ones: a row for each response and
budget, the same rows as an evaluation with that budget alone would have. The accuracies of a part, each with its
standard error over questions, stand in its footer.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa

from stages.configs.evaluate import Config
from stages.core.config import results_config
from stages.core.errors import IncompleteInput, UserError
from stages.core.progress import Progress, Silent, Summary
from stages.evaluation.artefacts import read_evaluation
from stages.evaluation.scores import COLUMNS
from stages.evaluation.summaries import accuracies, score_accuracies, summarise
from stages.models import checkpoints, loading
from stages.responses.generation import Response, Sampling, respond
from stages.responses.grading import grade
from stages.responses.prompts import make_prompts, with_template
from stages.sampling.engines import engine_packages, with_engine
from stages.sampling.pool import SamplerPool, use_pool
from stages.sampling.protocol import SamplingParams, batch_dependent
from stages.shards import sharding
from stages.shards.lineage import describe, model_source, task_source
from stages.shards.schemas import EVALUATION
from stages.shards.writing import PartWriter, open_part
from stages.tasks import Question, Task, open_task
from stages.tasks.selection import select_questions
from stages.tracking.metrics_log import MetricsLog, open_stage_log
from stages.tracking.trackers import check_trackers


def run(
    config: Config,
    progress: Progress = Silent(),
    report: MetricsLog | None = None,
    pool: SamplerPool | None = None,
) -> Summary:
    """Evaluates this shard's questions.

    Args:
      report: of the run that this is part of; left out, its own where one is asked for, once all parts are there.
      pool: of the run that this is part of; None: the call makes its own.

    Raises:
      UserError: wrong options, an unusable model, a task without questions, a question longer than the context.
      FingerprintMismatch: the part exists and was made with another configuration.
    """

    check_trackers(config.report_to)
    with use_pool(pool) as opened:
        summary = _run(config, progress, opened)
    _report(config, progress, report)
    return summary


def _run(config: Config, progress: Progress, pool: SamplerPool) -> Summary:

    started, shards = time.monotonic(), sharding.resolve_shards(config)
    config = dataclasses.replace(with_template(config), max_tokens=tuple(sorted(set(config.max_tokens))))
    tasks = [open_task(*choice) for choice in config.tasks]
    questions = _select(config, tasks)
    model_dir = checkpoints.resolve(config.model)
    inputs = tuple(
        task_source(choice.name, choice.data, task.digest, config.out)
        for choice, task in zip(config.tasks, tasks, strict=True)
    )
    model = model_source(config.model, checkpoints.digest(model_dir), config.out)
    config = with_engine(config, progress)
    lineage = describe("eval", EVALUATION, config, inputs, model, engine_packages(config.engine))
    sampled, prefilled, written = 0, 0, []
    for shard in shards:
        with open_part(
            config.out, shard.index, shard.count, lineage, EVALUATION, overwrite=config.overwrite, progress=progress
        ) as part:
            if not part.up_to_date:
                mine = [questions[i] for i in sharding.split(len(questions), shard)]
                of_part = _answer(config, mine, model_dir, part, progress, pool)
                sampled, prefilled = sampled + of_part[0], prefilled + of_part[1]
                rows = part.committed(COLUMNS)
                part.finish(score_accuracies(rows, tasks=len(tasks), budgets=len(config.max_tokens)))
        written.append(part)
    return summarise(written, config.out, started, tokens_sampled=sampled, tokens_prefilled=prefilled)


def _report(config: Config, progress: Progress, report: MetricsLog | None) -> None:
    """Tells the accuracies of all parts, if this was the last to be finished."""

    if not (report or config.report_to):
        return
    try:
        scores = read_evaluation(config.out).scores
    except IncompleteInput:
        return
    told = accuracies(scores, several_tasks=len(config.task) > 1, several_budgets=len(set(config.max_tokens)) > 1)
    figures = {name: mean for name, (mean, _) in told.items()}
    figures |= {f"{name} standard error": error for name, (_, error) in told.items()}
    with open_stage_log(config.out, config.report_to, results_config(config), progress, report) as opened:
        if opened:
            opened.log_figures("eval", config.out, figures)


def _select(config: Config, tasks: Sequence[Task]) -> list[tuple[Task, Question]]:
    """The questions of all tasks, task by task.

    Raises:
      UserError: two of them have the same id, or as `stages.tasks.selection.select_questions`.
    """

    chosen: dict[str, tuple[Task, Question]] = {}
    for task in tasks:
        for question in select_questions(
            task, config.split, config.num_questions, config.skip_questions, config.shuffle_seed
        ):
            if question.id in chosen:
                other = chosen[question.id][0].name
                raise UserError(
                    f"{other} and {task.name} both have a question {question.id}: evaluate them one by one, each with "
                    "its own --out"
                )
            chosen[question.id] = task, question
    return list(chosen.values())


def _answer(
    config: Config,
    questions: Sequence[tuple[Task, Question]],
    model_dir: Path,
    part: PartWriter,
    progress: Progress,
    pool: SamplerPool,
) -> tuple[int, int]:
    """Commits the rows of all questions, chunk by chunk; returns the tokens sampled and prefilled by this call."""

    tokenizer = loading.load_tokenizer(model_dir)
    sampler = pool.open(model_dir=model_dir, **config.engine_options(), progress=progress)
    chunks = _chunks(questions, config.chunk_questions)
    prompts = [make_prompts(tokenizer, of, task, config, sampler.context_length) for _, task, of in chunks]
    _tell_lack_of_room(prompts, sampler.context_length, config.max_tokens[-1], progress)
    params = SamplingParams(config.temperature, config.top_p, config.top_k, config.stop)
    missing = list(part.missing([name for name, *_ in chunks]))
    progress.start("eval", sum(len(chunks[i][2]) for i in missing) * config.num_generations, "responses")
    sampled = prefilled = 0
    for i in missing:
        sampling = Sampling(sampler, tokenizer, chunks[i][1], params, config.max_tokens[-1], (config.seed, "eval"))
        responses, usage = respond(*prompts[i], sampling, progress.advance, num_generations=config.num_generations)
        rows = response_rows(responses, sampling, config.max_tokens)
        counts = {"sampled": usage.sampled, "ungradable": rows["reward"].null_count}
        counts |= batch_dependent(sampler, rows.num_rows)
        part.commit(i, rows, counts, {"prefilled": usage.prefilled})
        sampled, prefilled = sampled + usage.sampled, prefilled + usage.prefilled
    return sampled, prefilled


def _tell_lack_of_room(
    prompts: Sequence[tuple[list[Question], list[np.ndarray]]], context: int, budget: int, progress: Progress
) -> None:
    """A budget beyond the model's context is no mistake, but its figures are those of the context."""
    cramped = sum(prompt.size + budget > context for _, of_chunk in prompts for prompt in of_chunk)
    if cramped:
        progress.note(
            f"the context of {context:,} tokens ends responses to {cramped:,} questions before {budget:,} tokens"
        )


def _chunks(questions: Sequence[tuple[Task, Question]], size: int) -> list[tuple[str, Task, list[Question]]]:
    """At most `size` questions each, of one task, with the name under which a part commits them."""
    chunks: list[tuple[str, Task, list[Question]]] = []
    for _, pairs in groupby(questions, key=lambda pair: id(pair[0])):
        (task, *_), own = zip(*pairs, strict=True)
        chunks += [
            (f"questions of {task.name} {first}-{min(first + size, len(own))}", task, list(own[first : first + size]))
            for first in range(0, len(own), size)
        ]
    return chunks


def response_rows(responses: Sequence[Response], sampling: Sampling, budgets: Sequence[int]) -> pa.Table:
    """A row of `schemas.EVALUATION` for each response under each budget, ascending; the responses have the last one."""

    by_budget = [*(_cut_off(responses, sampling, budget) for budget in budgets[:-1]), responses]
    rows = [
        (budget, response)
        for each in zip(*by_budget, strict=True)
        for budget, response in zip(budgets, each, strict=True)
    ]
    columns = {
        "response_id": [f"{one.question.id}/{one.index}" for _, one in rows],
        "task": [sampling.task.name] * len(rows),
        "question_id": [one.question.id for _, one in rows],
        "subject": [one.question.metadata.get("subject") for _, one in rows],
        "level": [one.question.metadata.get("level") for _, one in rows],
        "sample": [one.index for _, one in rows],
        "max_tokens": [budget for budget, _ in rows],
        "prompt": [one.question.prompt for _, one in rows],
        "prompt_token_ids": [one.prompt_token_ids for _, one in rows],
        "token_ids": [one.sample.token_ids for _, one in rows],
        "logprobs": [one.sample.logprobs for _, one in rows],
        "text": [one.grade.text for _, one in rows],
        "finish_reason": [one.sample.finish_reason for _, one in rows],
        "answer": [one.grade.answer for _, one in rows],
        "reference": [one.question.reference for _, one in rows],
        "reward": [one.grade.reward for _, one in rows],
    }
    return pa.table(columns, schema=EVALUATION.arrow)


def _cut_off(responses: Sequence[Response], sampling: Sampling, budget: int) -> list[Response]:
    """The responses as a smaller budget leaves them: longer ones end there, unfinished, and are graded as they are."""

    cut = {
        place: dataclasses.replace(
            one.sample,
            token_ids=one.sample.token_ids[:budget],
            logprobs=one.sample.logprobs[:budget],
            finish_reason="length",
        )
        for place, one in enumerate(responses)
        if len(one.sample.token_ids) > budget
    }
    if not cut:
        return list(responses)
    grades = grade(
        sampling.tokenizer,
        sampling.task,
        [sample.token_ids for sample in cut.values()],
        ["length"] * len(cut),
        [responses[place].question.reference for place in cut],
    )
    shortened = list(responses)
    for (place, sample), found in zip(cut.items(), grades, strict=True):
        shortened[place] = dataclasses.replace(responses[place], sample=sample, grade=found)
    return shortened
