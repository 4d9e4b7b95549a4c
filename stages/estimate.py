"""`spo estimate`: the values of the states where segments begin, and the segments' advantages → advantages/.

A segment's advantage is the difference of the values at its two ends; where these come from is `--estimator`: fresh
rollouts, the tree that the responses form, the other responses to the question, a critic (`stages.estimators`).
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping, Sequence

from stages.configs.estimate import Config, EstimatorName
from stages.core.errors import UserError
from stages.core.progress import Progress, Silent, Summary
from stages.estimators import Portion, Prepare
from stages.sampling.pool import SamplerPool, use_pool
from stages.shards import schemas
from stages.shards.lineage import describe
from stages.shards.origin import foreign_notes, trace_back
from stages.shards.parts import Artefact, Part, artefact_source, open_artefact
from stages.shards.sharding import resolve_shards, split
from stages.shards.writing import PartWriter, open_part


def run(config: Config, progress: Progress = Silent(), pool: SamplerPool | None = None) -> Summary:
    """Estimates the parts of this shard; each part of the cutpoints becomes the part of the same number.

    Args:
      pool: of the run that this is part of; None: the call makes its own.

    Raises:
      UserError: wrong options, an input of another stage, missing columns, a model or task that cannot be told.
      IncompleteInput: parts of the input are missing or torn.
    """

    started = time.monotonic()
    cutpoints = open_artefact(config.cutpoints, schemas.CUTPOINTS)
    trajectories = trace_back(cutpoints, schemas.TRAJECTORIES, config.trajectories)
    _check_graded_as_asked(config, trajectories)
    with use_pool(pool) as opened:
        estimator = find_estimator(config.estimator)(config, cutpoints, trajectories, config.out, progress, opened)
        sampled, prefilled, written = 0, 0.0, []
        for part in [cutpoints.parts[i] for i in split(len(cutpoints.parts), *resolve_shards(config))]:
            inputs = (
                artefact_source(cutpoints, config.out, part),
                artefact_source(trajectories, config.out),
                *estimator.inputs,
            )
            lineage = describe(
                "estimate", schemas.ADVANTAGES, estimator.settings, inputs, estimator.model, estimator.packages
            )
            with open_part(
                config.out,
                part.index,
                part.count,
                lineage,
                schemas.ADVANTAGES,
                overwrite=config.overwrite,
                progress=progress,
            ) as writer:
                if not writer.up_to_date:
                    of_part = _estimate(estimator.read(part), part, writer, progress)
                    sampled, prefilled = sampled + of_part[0], prefilled + of_part[1]
            written.append(writer)
    figures = _figures([writer.lineage.counts for writer in written])
    lost = figures.pop("ungradable", 0)
    notes = [f"{lost:,} rollouts could not be graded and count as wrong"] if lost else []
    return Summary(
        stage="estimate",
        out=str(config.out),
        rows=sum(writer.rows for writer in written),
        seconds=time.monotonic() - started,
        up_to_date=all(writer.up_to_date for writer in written),
        tokens_sampled=sampled,
        tokens_prefilled=int(prefilled),
        figures=figures,
        notes=(*foreign_notes(cutpoints, trajectories), *estimator.notes, *notes),
    )


def _estimate(portion: Portion, part: Part, writer: PartWriter, progress: Progress) -> tuple[int, float]:
    """Commits the rows of a part, chunk by chunk; returns the tokens sampled and prefilled by this call."""
    chunks = portion.chunks
    missing = list(writer.missing([f"trajectories {chunk.start}-{chunk.stop}" for chunk in chunks]))
    label = "estimate" if part.count == 1 else f"estimate {part.index}/{part.count}"
    progress.start(label, sum(map(len, (chunks[i] for i in missing))), "trajectories")
    sampled, prefilled = 0, 0.0
    for i in missing:
        done = portion.estimate(chunks[i])
        writer.commit(i, done.table, done.counts, done.figures)
        progress.advance(len(chunks[i]))
        sampled += done.counts.get("sampled", 0)
        prefilled += done.figures.get("prefilled", 0)
    writer.finish()
    return sampled, prefilled


def _check_graded_as_asked(config: Config, trajectories: Artefact) -> None:
    """Refuses another reward of unfinished responses than they were given, where nothing is graded again.

    Raises:
      UserError: saying what they earned, and where to say it.
    """
    asked = config.unfinished_reward
    earned = trajectories.lineage.config.get("unfinished_reward") if trajectories.lineage else None
    if config.estimator != "monte-carlo" and asked not in (None, earned):
        raise UserError(
            f"--unfinished-reward {asked:g} comes too late: --estimator {config.estimator} takes the rewards of "
            f"{trajectories.path}{'' if earned is None else f', sampled with {earned:g},'} as they are; pass it to "
            "`spo rollout`"
        )


def _figures(counts: Sequence[Mapping[str, int]]) -> dict[str, float]:
    """Sums over the parts; zeros as shares of what they are counted among."""
    names = dict.fromkeys(name for of_part in counts for name in of_part if name != "sampled")
    totals: dict[str, float] = {name: sum(of_part.get(name, 0) for of_part in counts) for name in names}
    shares = (
        ("frac_zero_advantage", "zero_advantage", "segments"),
        ("frac_reward_zero_std", "questions_zero_std", "questions"),
    )
    for share, part, whole in shares:
        if totals.get(whole):
            totals[share] = totals.pop(part) / totals[whole]
    return totals


def find_estimator(name: EstimatorName) -> Prepare:
    """The function that an estimator begins with; the others' modules are not imported."""
    modules: dict[EstimatorName, str] = {
        "monte-carlo": "monte_carlo",
        "tree": "tree",
        "grpo": "group",
        "rloo": "group",
        "dr-grpo": "group",
        "prefix-tree": "prefix_tree",
        "critic": "critic",
    }
    return importlib.import_module(f"stages.estimators.{modules[name]}").prepare
