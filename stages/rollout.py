"""`spo rollout`: sample K responses to each question, or a tree of them → trajectories/.

Without a tree a row is a response; in a tree a row is a node: the tokens between two branchings. A row holds the exact
token ids, their log-probabilities, the extracted answer and the reward.
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

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.configs.rollout import FIRST_RESPONSES, RHO, SEGMENT_TOKENS, Config
from stages.core.progress import Progress, Silent, Summary
from stages.models import checkpoints, loading
from stages.models.token_texts import decoder, token_texts
from stages.responses import branching, chains, growing, refill, signal, trees
from stages.responses.generation import Sampling
from stages.responses.grading import LengthPenalty
from stages.responses.prompts import (
    Prompts,
    check_vocabulary,
    count_overlong,
    ending_notes,
    leave_out_overlong,
    make_prompts,
    note_short_context,
    overlong_notes,
    with_template,
)
from stages.responses.resuming import ResumingSampler
from stages.sampling.engines import engine_packages, with_engine
from stages.sampling.executors import overlap, use_pool
from stages.sampling.pool import SamplerPool
from stages.sampling.protocol import OnTokens, SamplingParams, Usage, engine_counts
from stages.shards import sharding
from stages.shards.files import read_columns
from stages.shards.lineage import describe, model_source, task_source
from stages.shards.schemas import TRAJECTORIES, trajectories_with
from stages.shards.writing import PartWriter, open_part
from stages.tasks import Question, Task, open_task
from stages.tasks.selection import select_questions, select_replacements

Answer = Callable[[Sequence[Question], Sequence[np.ndarray], Sampling, OnTokens], tuple[pa.Table, Usage]]
"""(questions, their prompts as int32 [P] token ids, sampling, progress callback) → rows, token counts."""

_STATISTICS_COLUMNS = ("trajectory_id", "parent_id", "question_id", "token_ids", "finish_reason", "answer", "reward")


@dataclass(frozen=True)
class RolloutMode:
    """How `spo rollout` answers questions: by independent responses, or by trees.

    Attributes:
      answer: makes the rows of a chunk of questions.
      per_question: number of rows per question (in a tree, the maximum), for the progress display.
      most_tokens: the most tokens that the rows of a question can take; with --tree-budget, about as many.
      unit: name of a row in the progress display.
      statistics: summary of all rows of a part, from `_STATISTICS_COLUMNS`.
    """

    answer: Answer
    per_question: int
    most_tokens: int
    unit: str
    statistics: Callable[[pa.Table], dict[str, float]]


def run(config: Config, progress: Progress = Silent(), pool: SamplerPool | None = None) -> Summary:
    """Sample responses to this shard's questions.

    Args:
      pool: the sampler pool of the run that this call belongs to; None: the call makes its own.

    Raises:
      UserError: wrong options, an unusable model, a task without questions, a question longer than the context.
      NoSignal: the responses of these parts leave nothing to learn, and --fail-on-no-signal is given.
      FingerprintMismatch: the part exists and was made with another configuration.
    """
    started, shards = time.monotonic(), sharding.resolve_shards(config)
    mode, resolved = _find_mode(config), with_template(config.resolved())
    task = open_task(resolved.task, resolved.data, resolved.task_arg)
    questions = select_questions(
        task, resolved.split, resolved.num_questions, resolved.skip_questions, resolved.shuffle_seed
    )
    spares = _find_replacements(resolved, task)
    model_dir = checkpoints.resolve(resolved.model)
    inputs = (task_source(resolved.task, resolved.data, task.digest, resolved.out),)
    model = model_source(resolved.model, checkpoints.digest(model_dir), resolved.out)
    resolved = with_engine(resolved, progress)
    schema = trajectories_with(*(name for name, written in config.optional_columns.items() if written))
    lineage = describe("rollout", schema, resolved, inputs, model, engine_packages(resolved.engine))
    sampled, prefilled, written = 0, 0, []
    with use_pool(pool, config, config.out, progress) as samplers:
        for shard in shards:
            writer = open_part(
                config.out,
                shard.index,
                shard.count,
                lineage,
                schema,
                overwrite=config.overwrite,
                progress=progress,
            )
            with writer as part:
                if not part.up_to_date:
                    places = sharding.split(len(questions), shard)
                    rounds = [[(i, one[i]) for i in places if i < len(one)] for one in (questions, *spares)]
                    usage = _commit_rows(resolved, mode, task, rounds, model_dir, part, progress, samplers)
                    sampled, prefilled = sampled + usage[0], prefilled + usage[1]
                    part.finish(mode.statistics(part.committed(_STATISTICS_COLUMNS)))
            written.append(part)
        busy = samplers.report()
    rows = pa.concat_tables(read_columns(part.path, list(signal.COLUMNS), TRAJECTORIES) for part in written)
    lack = signal.describe_lack_of_signal(rows)
    if lack and config.fail_on_no_signal:
        progress.note(f"{config.out} is complete")
    notes = signal.check_signal(lack, fail=config.fail_on_no_signal)
    summary = _summary(config, written, time.monotonic() - started, sampled, prefilled)
    return dataclasses.replace(summary, notes=(*summary.notes, *notes, *busy))


def _summary(config: Config, parts: Sequence[PartWriter], seconds: float, sampled: int, prefilled: int) -> Summary:
    """Return the summary of a call that was responsible for these parts; with statistics if there is only one part."""
    figures = dict(parts[0].lineage.summary) if len(parts) == 1 else {}
    counts = [part.lineage.counts for part in parts]
    figures |= {} if config.staleness is None else {"staleness": float(config.staleness)}
    ungradable = sum(one.get("ungradable", 0) for one in counts)
    notes = [f"{ungradable:,} responses could not be graded: left out of every mean, not trained on"] * bool(ungradable)
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
        notes=(*overlong_notes(counts), *refill.refill_notes(counts, config.refill or 0), *notes),
    )


def _commit_rows(
    config: Config,
    mode: RolloutMode,
    task: Task,
    rounds: Sequence[Sequence[tuple[int, Question]]],
    model_dir: Path,
    part: PartWriter,
    progress: Progress,
    pool: SamplerPool,
) -> tuple[int, int]:
    """Commit the rows of all questions, chunk by chunk; return the tokens sampled and prefilled by this call.

    Args:
      rounds: the questions of the part with their places in the batch, then those that may replace them (--refill).
    """
    questions = [question for _, question in rounds[0]]
    tokenizer = loading.load_tokenizer(model_dir)
    sampler = pool.open(model_dir=model_dir, **config.engine_options(), progress=progress)
    size = config.chunk_questions
    chunks = [questions[i : i + size] for i in range(0, len(questions), size)]
    written = [make_prompts(tokenizer, chunk, task, config) for chunk in chunks]
    vocabulary = loading.vocabulary_size(loading.load_config(model_dir))
    check_vocabulary(written, vocabulary)
    for line in ending_notes(tokenizer, written):
        progress.note(line)
    prompts = leave_out_overlong(written, sampler.context_length, config.overlong_prompts)
    note_short_context(prompts, sampler.context_length, config.max_tokens, progress)
    write = partial(make_prompts, tokenizer, task=task, flags=config)
    tries = _candidates_by_chunk(rounds, size, write, vocabulary, sampler.context_length) if config.refill else []
    doubt = config.branch_at == "entropy"
    params = SamplingParams(config.temperature, config.top_p, config.top_k, config.stop, entropies=doubt)
    key = (config.seed, "rollout")
    penalty = None
    if config.overlong_buffer is not None:
        penalty = LengthPenalty(config.max_tokens, config.overlong_buffer, config.overlong_penalty)
    sampling = Sampling(sampler, tokenizer, task, params, config.max_tokens, key, config.unfinished_reward, penalty)
    missing = list(part.missing([f"questions {i * size}-{i * size + len(chunk)}" for i, chunk in enumerate(chunks)]))
    # With --refill, every candidate counts, also one that turns out not to be needed.
    total = sum(sum(map(len, tries[i])) if tries else len(prompts[i].questions) for i in missing)
    progress.start("rollout", total * mode.per_question, mode.unit, total * mode.most_tokens)
    sampled = prefilled = 0

    def answer(i: int) -> refill.Refilled:
        keeping = dataclasses.replace(sampling, sampler=ResumingSampler(sampler, part.kept_samples(i)))

        def attempt(questions: Sequence[Question], token_ids: Sequence[np.ndarray]) -> tuple[pa.Table, Usage]:
            return mode.answer(questions, token_ids, keeping, progress.advance)

        if not tries:
            return refill.Refilled(*attempt(*prompts[i]), {})
        found = refill.answer_with_signal(attempt, tries[i])
        progress.advance(found.untried * mode.per_question)
        return found

    decode = decoder(tokenizer)
    for i, found in overlap(sampler, missing, answer):
        rows, usage = found.rows, found.usage
        if config.token_texts:
            texts = [token_texts(decode, ids) for ids in rows["token_ids"].to_pylist()]
            rows = rows.append_column("token_texts", [texts])
        if config.staleness is not None:
            rows = rows.append_column("staleness", pa.array(np.full(rows.num_rows, config.staleness, np.int32)))
        counts = {"sampled": usage.sampled, "ungradable": _count_ungradable(rows), **found.counts}
        counts |= count_overlong(written[i], prompts[i]) | engine_counts(sampler, rows.num_rows)
        # How many tokens were prefilled depends on memory and crashes, so it goes to the log and not into the part.
        part.commit(i, rows, counts, {"prefilled": usage.prefilled, "gpus": pool.gpus})
        sampled, prefilled = sampled + usage.sampled, prefilled + usage.prefilled
    return sampled, prefilled


def _find_replacements(config: Config, task: Task) -> list[Sequence[Question]]:
    """Return the questions that may replace those without a signal, in rounds; [] without --refill."""
    if not config.refill or config.num_questions is None:
        return []
    return select_replacements(
        task, config.split, config.num_questions, config.skip_questions, config.shuffle_seed, config.refill
    )


def _candidates_by_chunk(
    rounds: Sequence[Sequence[tuple[int, Question]]],
    size: int,
    write: Callable[[Sequence[Question]], Prompts],
    vocabulary: int,
    context_length: int,
) -> list[list[refill.Candidates]]:
    """Return the candidates of each chunk by round, as `refill.answer_with_signal` takes them.

    Args:
      rounds: as `_commit_rows` takes them; all begin at the same place.
      size: number of places of a chunk.
      write: makes the prompts of questions.
      vocabulary, context_length: of the model.
    """
    chunks: list[list[refill.Candidates]] = []
    for first in range(0, len(rounds[0]), size):
        own = [one[first : first + size] for one in rounds]
        prompts = [write([question for _, question in one]) for one in own]
        check_vocabulary(prompts, vocabulary)
        places = [[place for place, _ in one] for one in own]
        chunks.append([refill.candidates(*pair, context_length) for pair in zip(prompts, places, strict=True)])
    return chunks


def _find_mode(config: Config) -> RolloutMode:
    """Return how the questions are answered: by trees of a budget or of a shape, or by independent responses."""
    if config.tree_budget is not None:
        growth = growing.Growth(
            config.tree_budget,
            config.num_trees or FIRST_RESPONSES,
            config.segment_tokens or SEGMENT_TOKENS,
            config.branch_at,
            _rho(config),
        )
        return RolloutMode(partial(growing.answer, growth=growth), 1, config.tree_budget, "trees", trees.statistics)
    if config.branches is None:
        count = config.responses_per_question
        tokens = count * config.max_tokens
        return RolloutMode(partial(chains.answer, num_generations=count), count, tokens, "responses", chains.statistics)
    if config.branch_at:
        options = {"branches": config.branches, "branch_at": config.branch_at, "rho": _rho(config)}
        nodes, tokens = branching.max_nodes(config.branches), branching.most_tokens(config.branches, config.max_tokens)
        return RolloutMode(partial(branching.answer, **options), nodes, tokens, "nodes", trees.statistics)
    size = config.segment_tokens or SEGMENT_TOKENS
    answer = partial(trees.answer, branches=config.branches, segment_tokens=size)
    tokens = trees.most_tokens(config.branches, size, config.max_tokens)
    return RolloutMode(answer, trees.max_nodes(config.branches), tokens, "nodes", trees.statistics)


def _rho(config: Config) -> float:
    """Return the probability below which a token is a cutpoint."""
    return RHO if config.rho is None else config.rho


def _count_ungradable(rows: pa.Table) -> int:
    """Return the number of responses without a reward; inner nodes of trees (finish_reason "segment") are none."""
    ungradable = pc.and_(pc.is_null(rows["reward"]), pc.not_equal(rows["finish_reason"], "segment"))
    return pc.sum(ungradable).as_py() or 0
