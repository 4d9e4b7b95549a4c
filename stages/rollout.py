"""`spo rollout`: sample K responses to each question, or a tree of them → trajectories/.

One row per response, in a tree per stretch of one: the exact token ids, their log-probabilities, the answer that was
read, the reward.
"""

# pyarrow.compute makes its functions at import time:
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.configs.rollout import SEGMENT_TOKENS, Config
from stages.configs.shared import ResponseFlags
from stages.core.config import option
from stages.core.progress import Progress, Silent, Summary
from stages.models import checkpoints, loading
from stages.responses import chains, trees
from stages.responses.generation import OnTokens, Sampling
from stages.responses.prompts import make_prompts, with_template
from stages.sampling.installed import engine_packages, with_engine
from stages.sampling.protocol import SamplingParams, Usage, batch_dependent, open_sampler
from stages.shards import sharding
from stages.shards.lineage import describe, model_source, task_source
from stages.shards.schemas import TRAJECTORIES
from stages.shards.writing import PartWriter, open_part
from stages.tasks import Question, Task, open_task
from stages.tasks.selection import select_questions

if TYPE_CHECKING:
    Answer = Callable[[Sequence[Question], Sequence[np.ndarray], Sampling, OnTokens], tuple[pa.Table, Usage]]
    """(questions, their prompts as int32 [P] token ids, by whom, whom to tell) → their rows, what the engine did."""

_SUMMARISED = ("trajectory_id", "parent_id", "question_id", "token_ids", "finish_reason", "reward")


@dataclass(frozen=True, kw_only=True)
class _Resolved(ResponseFlags):
    """A Config with its defaults resolved: the source of the fingerprint."""

    num_generations: int | None = option("As given, or the default; none in a tree.")
    tree: tuple[int, ...] | None = option("Branches per level.")
    segment_tokens: int | None = option("As given, or the default; none without a tree.")
    unfinished_reward: float = option("As given.")


@dataclass(frozen=True)
class _Way:
    """How a chunk of questions becomes rows, how many `unit`s a question takes, and what is said of all rows."""

    answer: Answer
    per_question: int
    unit: str
    statistics: Callable[[pa.Table], dict[str, float]]


def run(config: Config, progress: Progress = Silent()) -> Summary:
    """Samples this shard's questions.

    Raises:
      UserError: wrong options, an unusable model, a task without questions, a question longer than the context.
      FingerprintMismatch: the part exists and was made with another configuration.
    """

    started, shards = time.monotonic(), sharding.resolve_shards(config)
    way, asked = _way(config), with_template(_resolve(config))
    task = open_task(asked.task, asked.data, asked.task_arg)
    questions = select_questions(task, asked.split, asked.num_questions, asked.skip_questions, asked.shuffle_seed)
    model_dir = checkpoints.resolve(asked.model)
    inputs = (task_source(asked.task, asked.data, task.digest, asked.out),)
    model = model_source(asked.model, checkpoints.digest(model_dir), asked.out)
    asked = with_engine(asked, progress)
    lineage = describe("rollout", TRAJECTORIES, asked, inputs, model, engine_packages(asked.engine))
    sampled, prefilled, written = 0, 0, []
    for shard in shards:
        with open_part(
            asked.out, shard.index, shard.count, lineage, TRAJECTORIES, overwrite=asked.overwrite, progress=progress
        ) as part:
            if not part.up_to_date:
                mine = [questions[i] for i in sharding.split(len(questions), shard)]
                of_part = _answer(asked, way, task, mine, model_dir, part, progress)
                sampled, prefilled = sampled + of_part[0], prefilled + of_part[1]
                part.finish(way.statistics(part.committed(_SUMMARISED)))
        written.append(part)
    return _summary(config, written, time.monotonic() - started, sampled, prefilled)


def _summary(config: Config, parts: Sequence[PartWriter], seconds: float, sampled: int, prefilled: int) -> Summary:
    """How a call that wrote these parts ended; their statistics are told where it wrote one part."""
    figures = dict(parts[0].lineage.summary) if len(parts) == 1 else {}
    lost = sum(part.lineage.counts.get("ungradable", 0) for part in parts)
    return Summary(
        stage="rollout",
        out=str(config.out),
        rows=sum(part.rows for part in parts),
        seconds=seconds,
        up_to_date=all(part.up_to_date for part in parts),
        tokens_sampled=sampled,
        tokens_prefilled=prefilled,
        reward=figures.pop("reward", None),
        figures=figures,
        notes=(f"{lost:,} responses could not be graded and count as wrong",) if lost else (),
    )


def _answer(
    asked: _Resolved,
    way: _Way,
    task: Task,
    questions: Sequence[Question],
    model_dir: Path,
    part: PartWriter,
    progress: Progress,
) -> tuple[int, int]:
    """Commits the rows of all questions, chunk by chunk; returns the tokens sampled and prefilled by this call."""

    tokenizer = loading.load_tokenizer(model_dir)
    sampler = open_sampler(model_dir=model_dir, **asked.engine_options(), progress=progress)
    questions, prompts = make_prompts(tokenizer, questions, task, asked, sampler.context_length)
    params = SamplingParams(asked.temperature, asked.top_p, asked.top_k, asked.stop)
    key = (asked.seed, "rollout")
    sampling = Sampling(sampler, tokenizer, task, params, asked.max_tokens, key, asked.unfinished_reward)
    size = asked.chunk_questions
    chunks = [slice(i, min(i + size, len(questions))) for i in range(0, len(questions), size)]
    missing = list(part.missing([f"questions {chunk.start}-{chunk.stop}" for chunk in chunks]))
    left = sum(chunks[i].stop - chunks[i].start for i in missing)
    progress.start("rollout", left * way.per_question, way.unit)
    sampled = prefilled = 0
    for i in missing:
        rows, usage = way.answer(questions[chunks[i]], prompts[chunks[i]], sampling, progress.advance)
        rows, ungradable = _without_verdict(rows)
        counts = {"sampled": usage.sampled, "ungradable": ungradable, **batch_dependent(sampler, rows.num_rows)}
        part.commit(i, rows, counts, {"prefilled": usage.prefilled})
        sampled, prefilled = sampled + usage.sampled, prefilled + usage.prefilled
    return sampled, prefilled


def _resolve(config: Config) -> _Resolved:
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(ResponseFlags)}
    in_tree = config.branches is not None
    return _Resolved(
        **shared,
        tree=config.branches,
        num_generations=None if in_tree else config.responses_per_question,
        segment_tokens=config.segment_tokens or SEGMENT_TOKENS if in_tree else None,
        unfinished_reward=config.unfinished_reward,
    )


def _way(config: Config) -> _Way:

    if config.branches is None:
        count = config.responses_per_question
        return _Way(partial(chains.answer, num_generations=count), count, "responses", chains.statistics)
    tokens = config.segment_tokens or SEGMENT_TOKENS
    answer = partial(trees.answer, branches=config.branches, segment_tokens=tokens)
    return _Way(answer, trees.max_nodes(config.branches), "stretches", trees.statistics)


def _without_verdict(rows: pa.Table) -> tuple[pa.Table, int]:
    """The rows with reward 0 where a response could not be graded, and how many of those there are."""

    lost = pc.and_(pc.is_null(rows["reward"]), pc.not_equal(rows["finish_reason"], "segment"))
    place = rows.column_names.index("reward")
    mended = rows.set_column(place, rows.field(place), pc.if_else(lost, pa.scalar(0.0, pa.float32()), rows["reward"]))
    return mended, pc.sum(lost).as_py() or 0
