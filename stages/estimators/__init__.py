"""Estimators: how the value of each segment's ends, and so its advantage, is told from an artefact of cutpoints.

Each estimator is a module here with one function,

    prepare(options, cutpoints, trajectories, out, progress, pool) -> Estimator

named in the dict of `stages.estimate`. `prepare` checks what can be checked before work begins, and resolves what was
left out: `Estimator.settings` is a frozen dataclass of the options that this estimator reads, and nothing else enters
the fingerprint. `Estimator.read` opens one part of the cutpoints and says how its rows are cut into chunks, which the
verb commits one by one; whatever is dear (a model, a tokenizer) is loaded there, not in `prepare`, so that a part that
is up to date costs nothing, and an estimator that needs no model never loads one.

A new one: its options go into `stages.configs.estimate` (and into the table there of who reads them), its module
here, the module's name into the dict. Rows come from `stages.estimators.rows`, segments from `stages.estimators.segments`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from stages.configs.estimate import EstimatorOptions
from stages.core.progress import Progress
from stages.sampling.pool import SamplerPool
from stages.shards.lineage import Source
from stages.shards.parts import Artefact, Part


@dataclass(frozen=True)
class Estimated:
    """What became of a chunk.

    Attributes:
      table: its rows of `schemas.ADVANTAGES`.
      counts: whole numbers that depend on the rows alone (segments, rollouts, sampled …): into the lineage.
      figures: numbers that may differ between two runs (prefilled): into the log.
    """

    table: pa.Table
    counts: Mapping[str, int]
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Portion:
    """One part of the cutpoints, read and checked.

    Attributes:
      chunks: stretches of its trajectories, in order; a question is never divided.
      estimate: the rows of one of these stretches.
    """

    chunks: Sequence[range]
    estimate: Callable[[range], Estimated]

    @classmethod
    def at_once(cls, trajectories: int, done: Estimated) -> Portion:
        """In one chunk, for what is too quick to be worth more: known before anything is written."""
        return cls([range(trajectories)] if trajectories else [], lambda chunk: done)


@dataclass(frozen=True)
class Estimator:
    """An estimator that knows its options and its inputs.

    Attributes:
      settings: dataclass of the options that it reads, made with `config.option`: what the fingerprint is made of.
      read: opens a part of the cutpoints.
      inputs: what else it reads beside the cutpoints and the trajectories.
      model: the model that it samples with or evaluates; None for an estimator without one.
      packages: distributions that the rows go through.
      notes: lines for the reader.
    """

    settings: Any
    read: Callable[[Part], Portion]
    inputs: tuple[Source, ...] = ()
    model: Source | None = None
    packages: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Prepare(Protocol):
    """The function of an estimator's module that `stages.estimate` calls."""

    def __call__(
        self,
        options: EstimatorOptions,
        cutpoints: Artefact,
        trajectories: Artefact,
        out: Path,
        progress: Progress,
        pool: SamplerPool,
    ) -> Estimator:
        """Checks the options against the inputs and fills in what was left out.

        Args:
          out: directory of the artefact that is written: paths in its lineage start there.
          progress: told of rollouts as they are drawn.
          pool: where an estimator that samples opens its model.

        Raises:
          UserError: options that do not fit the inputs, a model or task that cannot be told.
        """
        ...
