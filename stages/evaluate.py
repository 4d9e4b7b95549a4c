"""`spo eval`: sample k responses to each question of one or more tasks and grade them under every budget → eval/.

Responses are sampled once, up to the largest budget, and truncated to the smaller ones. There is one row per response
and budget, the same row as in an evaluation with that budget alone. The footer of a part holds its accuracies, each
with its standard error over questions.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pyarrow as pa

from stages.configs.evaluate import Config
from stages.core.config import results_config
from stages.core.errors import IncompleteInput, UserError
from stages.core.progress import Progress, Silent, Summary
from stages.evaluation.artefacts import read_evaluation
from stages.evaluation.scores import COLUMNS
from stages.evaluation.summaries import accuracies, score_accuracies, summarize
from stages.models import checkpoints, loading
from stages.responses.generation import Response, Sampling, respond
from stages.responses.grading import grade
from stages.responses.prompts import (
    check_vocabulary,
    count_overlong,
    ending_notes,
    leave_out_overlong,
    make_prompts,
    note_short_context,
    with_template,
)
from stages.responses.resuming import ResumingSampler
from stages.sampling.engines import engine_packages, with_engine
from stages.sampling.executors import overlap, use_pool
from stages.sampling.pool import SamplerPool
from stages.sampling.protocol import SamplingParams, Usage, engine_counts
from stages.shards import sharding
from stages.shards.lineage import describe, model_source, task_source
from stages.shards.schemas import EVALUATION
from stages.shards.writing import PartWriter, open_part
from stages.tasks import Question, Task, open_task
from stages.tasks.selection import select_questions
from stages.tracking.metrics_log import MetricsLog, open_stage_log
from stages.tracking.trackers import check_trackers


@dataclass(frozen=True)
class _Chunk:
    """Questions of one task whose responses are committed together, under a name that identifies them in the part."""

    name: str
    task: Task
    questions: list[Question]


def run(
    config: Config,
    progress: Progress = Silent(),
    metrics_log: MetricsLog | None = None,
    pool: SamplerPool | None = None,
) -> Summary:
    """Evaluate this shard's questions.

    Args:
      metrics_log: log of the run that this call belongs to; None: the call opens its own if --report-to is given.
        The accuracies are reported once all parts exist.
      pool: sampler pool of the run that this call belongs to; None: the call makes its own.

    Raises:
      UserError: wrong options, an unusable model, a task without questions, or a question longer than the context.
      FingerprintMismatch: the part exists and was made with another configuration.
    """
    check_trackers(config.report_to)
    with use_pool(pool, config, config.out, progress) as opened:
        summary = _run(config, progress, opened)
        summary = dataclasses.replace(summary, notes=(*summary.notes, *opened.report()))
    _report(config, progress, metrics_log)
    return summary


def _run(config: Config, progress: Progress, pool: SamplerPool) -> Summary:
    """Write the parts of this shard and summarize them."""
    started, shards = time.monotonic(), sharding.resolve_shards(config)
    config = dataclasses.replace(with_template(config), max_tokens=tuple(sorted(set(config.max_tokens))))
    tasks = [open_task(*choice) for choice in config.tasks]
    questions = _select_questions(config, tasks)
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
                own_questions = [questions[i] for i in sharding.split(len(questions), shard)]
                usage = _sample_part(config, own_questions, model_dir, part, progress, pool)
                sampled, prefilled = sampled + usage[0], prefilled + usage[1]
                rows = part.committed(COLUMNS)
                part.finish(score_accuracies(rows, tasks=len(tasks), budgets=len(config.max_tokens)))
        written.append(part)
    return summarize(written, config.out, started, tokens_sampled=sampled, tokens_prefilled=prefilled)


def _report(config: Config, progress: Progress, metrics_log: MetricsLog | None) -> None:
    """Report the accuracies of the whole evaluation if all parts exist."""
    if not (metrics_log or config.report_to):
        return
    try:
        scores = read_evaluation(config.out).scores
    except IncompleteInput:  # other shards have not finished: the last one reports
        return
    found = accuracies(scores, several_tasks=len(config.task) > 1, several_budgets=len(set(config.max_tokens)) > 1)
    figures = {name: mean for name, (mean, _) in found.items()}
    figures |= {f"{name} standard error": error for name, (_, error) in found.items()}
    with open_stage_log(config.out, config.report_to, results_config(config), progress, metrics_log) as opened:
        if opened:
            opened.log_figures("eval", config.out, figures)


def _select_questions(config: Config, tasks: Sequence[Task]) -> list[tuple[Task, Question]]:
    """Return the questions of all tasks, task by task.

    Raises:
      UserError: two questions have the same id; also as `stages.tasks.selection.select_questions`.
    """
    chosen: dict[str, tuple[Task, Question]] = {}
    for task in tasks:
        for question in select_questions(
            task, config.split, config.num_questions, config.skip_questions, config.shuffle_seed
        ):
            if question.id in chosen:
                other = chosen[question.id][0].name
                raise UserError(
                    f"{other} and {task.name} both have a question {question.id}: evaluate one task at a time, each "
                    "with its own --out"
                )
            chosen[question.id] = task, question
    return list(chosen.values())


def _sample_part(
    config: Config,
    questions: Sequence[tuple[Task, Question]],
    model_dir: Path,
    part: PartWriter,
    progress: Progress,
    pool: SamplerPool,
) -> tuple[int, int]:
    """Sample and commit the rows of a part, chunk by chunk; return the tokens that this call sampled and prefilled."""
    tokenizer = loading.load_tokenizer(model_dir)
    sampler = pool.open(model_dir=model_dir, **config.engine_options(), progress=progress)
    chunks = _chunks(questions, config.chunk_questions)
    # All prompts first: a question that does not fit is an error before anything is sampled.
    written = [make_prompts(tokenizer, chunk.questions, chunk.task, config) for chunk in chunks]
    check_vocabulary(written, loading.vocabulary_size(loading.load_config(model_dir)))
    for line in ending_notes(tokenizer, written):
        progress.note(line)
    prompts = leave_out_overlong(written, sampler.context_length, config.overlong_prompts)
    note_short_context(prompts, sampler.context_length, config.max_tokens[-1], progress)
    params = SamplingParams(config.temperature, config.top_p, config.top_k, config.stop)
    missing = list(part.missing([chunk.name for chunk in chunks]))
    total = sum(len(prompts[i].questions) for i in missing) * config.num_generations
    progress.start("eval", total, "responses", total * config.max_tokens[-1])
    sampled = prefilled = 0

    def answer(i: int) -> tuple[pa.Table, Usage]:
        keeping = ResumingSampler(sampler, part.kept_samples(i))
        sampling = Sampling(keeping, tokenizer, chunks[i].task, params, config.max_tokens[-1], (config.seed, "eval"))
        responses, usage = respond(*prompts[i], sampling, progress.advance, num_generations=config.num_generations)
        return response_rows(responses, sampling, config.max_tokens), usage

    for i, (rows, usage) in overlap(sampler, missing, answer):
        counts = {"sampled": usage.sampled, "ungradable": rows["reward"].null_count}
        counts |= count_overlong(written[i], prompts[i]) | engine_counts(sampler, rows.num_rows)
        part.commit(i, rows, counts, {"prefilled": usage.prefilled, "gpus": pool.gpus})
        sampled, prefilled = sampled + usage.sampled, prefilled + usage.prefilled
    return sampled, prefilled


def _chunks(questions: Sequence[tuple[Task, Question]], size: int) -> list[_Chunk]:
    """Divide the questions into chunks of at most `size` questions of one task."""
    chunks: list[_Chunk] = []
    for _, pairs in groupby(questions, key=lambda pair: id(pair[0])):
        (task, *_), own = zip(*pairs, strict=True)
        chunks += [
            _Chunk(
                f"questions of {task.name} {first}-{min(first + size, len(own))}", task, list(own[first : first + size])
            )
            for first in range(0, len(own), size)
        ]
    return chunks


def response_rows(responses: Sequence[Response], sampling: Sampling, budgets: Sequence[int]) -> pa.Table:
    """Return a row of `schemas.EVALUATION` for each response under each budget.

    Args:
      responses: sampled with the largest budget.
      budgets: ascending, in tokens.
    """
    by_budget = [*(_truncate(responses, sampling, budget) for budget in budgets[:-1]), responses]
    rows = [
        (budget, response)
        for versions in zip(*by_budget, strict=True)
        for budget, response in zip(budgets, versions, strict=True)
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


def _truncate(responses: Sequence[Response], sampling: Sampling, budget: int) -> list[Response]:
    """Truncate the responses to a smaller budget; longer ones are unfinished there, and are graded again."""
    truncated = {
        i: dataclasses.replace(
            one.sample,
            token_ids=one.sample.token_ids[:budget],
            logprobs=one.sample.logprobs[:budget],
            finish_reason="length",
        )
        for i, one in enumerate(responses)
        if len(one.sample.token_ids) > budget
    }
    if not truncated:
        return list(responses)
    grades = grade(
        sampling.tokenizer,
        sampling.task,
        [sample.token_ids for sample in truncated.values()],
        ["length"] * len(truncated),
        [responses[i].question.reference for i in truncated],
    )
    result = list(responses)
    for (i, sample), verdict in zip(truncated.items(), grades, strict=True):
        result[i] = dataclasses.replace(responses[i], sample=sample, grade=verdict)
    return result
