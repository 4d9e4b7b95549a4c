"""`spo estimate`: estimate the values of the states where segments start, and the segments' advantages → advantages/.

The advantage of a segment is the difference of the values at its ends. `--estimator` selects the source of the values:
fresh rollouts, a tree of responses, the other responses to the question, or a critic (`stages.estimators`). With
`--keep-rollouts`, fresh rollouts are written too, as an artefact of their own → rollouts/.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack

from stages.configs.estimate import ROLLOUTS_NAME, Config, EstimatorName
from stages.core.errors import UserError
from stages.core.progress import Progress, Silent, Summary
from stages.estimators import EstimatedChunk, Estimator, Prepare, PreparedPart
from stages.responses import signal
from stages.responses.resuming import ResumingSampler
from stages.sampling.executors import overlap, use_pool
from stages.sampling.pool import SamplerPool
from stages.shards import schemas
from stages.shards.lineage import Source, describe
from stages.shards.origin import foreign_notes, trace_back
from stages.shards.parts import Artefact, Part, artefact_source, open_artefact
from stages.shards.sharding import resolve_shards, split
from stages.shards.writing import PartWriter, open_part


def run(config: Config, progress: Progress = Silent(), pool: SamplerPool | None = None) -> Summary:
    """Estimate the parts of this shard; part i of the cutpoints becomes part i of the advantages.

    Args:
      pool: sampler pool of the run that this call belongs to; None: the call makes its own.

    Raises:
      UserError: wrong options, an input of another stage, missing columns, or an unknown model or task.
      IncompleteInput: parts of the input are missing or corrupt.
    """
    started = time.monotonic()
    cutpoints = open_artefact(config.cutpoints, schemas.CUTPOINTS)
    trajectories = trace_back(cutpoints, schemas.TRAJECTORIES, config.trajectories)
    _check_unfinished_reward(config, trajectories)
    lack = signal.describe_lack_of_signal(trajectories.read_all(signal.COLUMNS))
    unlearnable = signal.check_signal(lack, fail=config.fail_on_no_signal)
    for line in unlearnable:  # before rollouts are sampled
        progress.note(line)
    with use_pool(pool, config, config.out, progress) as opened:
        estimator = find_estimator(config.estimator)(config, cutpoints, trajectories, config.out, progress, opened)
        sampled, prefilled, written = 0, 0.0, []
        for part in [cutpoints.parts[i] for i in split(len(cutpoints.parts), *resolve_shards(config))]:
            inputs = (
                artefact_source(cutpoints, config.out, part),
                artefact_source(trajectories, config.out),
                *estimator.inputs,
            )
            with ExitStack() as stack:
                writers = [stack.enter_context(one) for one in _writers(config, estimator, part, inputs, progress)]
                if not all(writer.up_to_date for writer in writers):
                    usage = _estimate_part(estimator.read(part), part, writers, progress, opened)
                    sampled, prefilled = sampled + usage[0], prefilled + usage[1]
            written.append(writers[0])
        busy = opened.report()
    figures = _summarize_counts([writer.lineage.counts for writer in written])
    notes = _notes(figures)
    return Summary(
        stage="estimate",
        out=str(config.out),
        rows=sum(writer.rows for writer in written),
        seconds=time.monotonic() - started,
        up_to_date=all(writer.up_to_date for writer in written),
        tokens_sampled=sampled,
        tokens_prefilled=int(prefilled),
        figures=figures,
        notes=(*foreign_notes(cutpoints, trajectories), *estimator.notes, *notes, *unlearnable, *busy),
    )


def _writers(
    config: Config, estimator: Estimator, part: Part, inputs: tuple[Source, ...], progress: Progress
) -> Iterator[AbstractContextManager[PartWriter]]:
    """Yield the writer of one part of the advantages, then that of its rollouts if they are kept."""
    outputs = [(schemas.ADVANTAGES, config.out)]
    outputs += [(schemas.ROLLOUTS, config.out.with_name(ROLLOUTS_NAME))] * estimator.keeps_rollouts
    for schema, directory in outputs:
        lineage = describe(
            schema.stage,
            schema,
            estimator.options,
            inputs,
            estimator.model,
            estimator.packages,
            recorded=estimator.recorded,
        )
        yield open_part(
            directory, part.index, part.count, lineage, schema, overwrite=config.overwrite, progress=progress
        )


def _estimate_part(
    prepared: PreparedPart, part: Part, writers: Sequence[PartWriter], progress: Progress, pool: SamplerPool
) -> tuple[int, float]:
    """Estimate and commit a part, chunk by chunk; return the tokens that this call sampled and prefilled.

    Args:
      writers: of the advantages, and of the rollouts if they are kept. A chunk that only one of them lacks is computed
        again: the same states and keys give the same rollouts.
    """
    chunks = prepared.chunks
    keys = [f"trajectories {chunk.start}-{chunk.stop}" for chunk in chunks]
    # Rollouts come first, so that they are complete where the advantages are.
    missing = {writer: set(writer.missing(keys)) for writer in reversed(writers) if not writer.up_to_date}
    numbers = sorted(set().union(*missing.values()))
    label = "estimate" if part.count == 1 else f"estimate {part.index}/{part.count}"
    progress.start(label, sum(map(len, (chunks[i] for i in numbers))), "trajectories")
    sampled, prefilled, gpus = 0, 0.0, pool.gpus if prepared.sampler else 0

    def estimate(i: int) -> EstimatedChunk:
        # The advantages are committed last, so their writer keeps the samples of a chunk until both are committed.
        keeper = next(writer for writer in writers if i in missing.get(writer, ()))
        sampler = ResumingSampler(prepared.sampler, keeper.kept_samples(i)) if prepared.sampler else None
        return prepared.estimate(chunks[i], sampler)

    for i, result in overlap(prepared.sampler, numbers, estimate):
        for writer in (one for one, own in missing.items() if i in own):
            if writer is writers[0]:
                writer.commit(i, result.table, result.counts, {**result.figures, "gpus": gpus})
            else:
                assert result.rollouts is not None, "an estimator that keeps rollouts returns those of every chunk"
                writer.commit(i, result.rollouts)
        progress.advance(len(chunks[i]))
        sampled += result.counts.get("sampled", 0)
        prefilled += result.figures.get("prefilled", 0)
    for writer in missing:
        writer.finish()
    return sampled, prefilled


def _check_unfinished_reward(config: Config, trajectories: Artefact) -> None:
    """Check --unfinished-reward: only Monte Carlo grades responses, the other estimators use the recorded rewards.

    Raises:
      UserError: the option differs from the reward that unfinished responses have.
    """
    requested = config.unfinished_reward
    recorded = trajectories.lineage.config.get("unfinished_reward") if trajectories.lineage else None
    if config.estimator not in ("monte-carlo", "forward") and requested not in (None, recorded):
        sampled_with = "" if recorded is None else f", sampled with --unfinished-reward {recorded:g}"
        raise UserError(
            f"--unfinished-reward {requested:g} has no effect here: --estimator {config.estimator} uses the rewards of "
            f"{trajectories.path}{sampled_with}; pass the option to `spo rollout`"
        )


def _notes(figures: dict[str, float]) -> list[str]:
    """Move the counts of what has no reward, or nothing to be compared with, from the figures into lines."""
    lines = {
        "ungradable": "rollouts could not be graded: the values leave them out",
        "responses_ungradable": "responses could not be graded: left out of every mean, not trained on",
        "segments_ungradable": "segments have no row, because their response, or every rollout at one of their ends, "
        "could not be graded",
        "questions_alone": "questions have a single graded response, which has nothing to be compared with: its "
        "advantage is 0. Sample more with --num-generations",
    }
    return [f"{int(count):,} {line}" for name, line in lines.items() if (count := figures.pop(name, 0))]


def _summarize_counts(counts: Sequence[Mapping[str, int]]) -> dict[str, float]:
    """Sum the counts of the parts, and turn counts of zeros into fractions."""
    names = dict.fromkeys(name for part in counts for name in part if name != "sampled")
    totals: dict[str, float] = {name: sum(part.get(name, 0) for part in counts) for name in names}
    fractions = (
        ("frac_zero_advantage", "zero_advantage", "segments"),
        ("frac_reward_zero_std", "questions_zero_std", "questions"),
    )
    for fraction, count, total in fractions:
        if totals.get(total):
            totals[fraction] = totals.pop(count) / totals[total]
    return totals


def find_estimator(name: EstimatorName) -> Prepare:
    """Return the `prepare` function of an estimator; its module is imported here, so that others need not be."""
    modules: dict[EstimatorName, str] = {
        "monte-carlo": "monte_carlo",
        "tree": "tree",
        "grpo": "group",
        "rloo": "group",
        "dr-grpo": "group",
        "restem": "group",
        "pairs": "group",
        "prefix-tree": "prefix_tree",
        "tempo": "prefix_tree",
        "critic": "critic",
        "forward": "monte_carlo",
    }
    return importlib.import_module(f"stages.estimators.{modules[name]}").prepare
