"""Estimators: compute the values at the ends of each segment, and from them its advantage.

Each estimator is a module here with one function,

    prepare(options, cutpoints, trajectories, out, progress, pool) -> Estimator

registered in `stages.estimate.find_estimator`. `prepare` checks the options and inputs before work starts and resolves
defaults. Only the options named in `Estimator.recorded` enter the lineage and the fingerprint. `Estimator.read` opens
one part of the cutpoints and divides its trajectories into chunks, which `spo estimate` commits one by one. Models and
tokenizers are loaded in `read`, not in `prepare`, so a part that is up to date loads none.

To add an estimator: define its options in `stages.configs.estimate` (and in `READ_BY` there), write its module here,
and register the module in `find_estimator`. `stages.estimators.segments` loads segments, `stages.estimators.rows`
builds the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

from stages.configs.estimate import Config
from stages.core.paths import AnyPath
from stages.core.progress import Progress
from stages.sampling.pool import SamplerPool
from stages.sampling.protocol import Sampler
from stages.shards.lineage import Source
from stages.shards.parts import Artefact, Part


@dataclass(frozen=True)
class EstimatedChunk:
    """The result for one chunk.

    Attributes:
      table: rows of `schemas.ADVANTAGES`.
      counts: integers that depend on the rows alone (segments, rollouts, sampled …); summed into the lineage.
      figures: numbers that may differ between two runs of the same work (prefilled); written to the log.
      rollouts: rows of `schemas.ROLLOUTS`; None if the estimator keeps none.
    """

    table: pa.Table
    counts: Mapping[str, int]
    figures: Mapping[str, float] = field(default_factory=dict)
    rollouts: pa.Table | None = None


@dataclass(frozen=True)
class PreparedPart:
    """One part of the cutpoints, read and checked.

    Attributes:
      chunks: ranges of its trajectories, in order; a chunk holds whole questions.
      estimate: computes the rows of one chunk; samples with the sampler that it is given, which wraps `sampler`.
      sampler: the engine with the policy; None: the estimator samples nothing.
    """

    chunks: Sequence[range]
    estimate: Callable[[range, Sampler | None], EstimatedChunk]
    sampler: Sampler | None = None

    @classmethod
    def single_chunk(cls, trajectories: int, result: EstimatedChunk) -> PreparedPart:
        """Return a part with one chunk whose rows are known: for estimators too fast to need resuming."""
        return cls([range(trajectories)] if trajectories else [], lambda chunk, sampler: result)


@dataclass(frozen=True)
class Estimator:
    """An estimator with resolved options and checked inputs.

    Attributes:
      options: with defaults resolved.
      recorded: names of the options that this estimator reads; these alone enter the lineage and the fingerprint.
      read: opens a part of the cutpoints.
      inputs: inputs besides the cutpoints and the trajectories.
      model: the model that samples rollouts; None for an estimator without rollouts.
      packages: distributions that can influence the rows.
      notes: lines for the user.
      keeps_rollouts: whether every chunk has the rows of its rollouts.
    """

    options: Config
    recorded: tuple[str, ...]
    read: Callable[[Part], PreparedPart]
    inputs: tuple[Source, ...] = ()
    model: Source | None = None
    packages: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    keeps_rollouts: bool = False


class Prepare(Protocol):
    """The function of an estimator's module that `stages.estimate` calls."""

    def __call__(
        self,
        options: Config,
        cutpoints: Artefact,
        trajectories: Artefact,
        out: AnyPath,
        progress: Progress,
        pool: SamplerPool,
    ) -> Estimator:
        """Check the options against the inputs and resolve defaults.

        Args:
          out: directory of the artefact to write; paths in its lineage are relative to it.
          progress: receives the rollouts as they are sampled.
          pool: opens the model of an estimator that samples.

        Raises:
          UserError: the options do not fit the inputs, or a model or task is unknown.
        """
        ...
