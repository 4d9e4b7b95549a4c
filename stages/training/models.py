"""Owns which models a training call has in memory: one at a time, with its engine, looked at before it is used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.optimization import deepspeed
from stages.optimization.lora import BaseScorer
from stages.optimization.optimizer import Adam
from stages.optimization.step import Engine, Scorer
from stages.optimization.torch import TorchEngine, open_engine
from stages.training.execution import ExecutionPlan
from stages.training.starting_point import StartingPoint


class Models:
    """The policy, the models that sampled and the reference, by their directories."""

    def __init__(
        self,
        start: StartingPoint,
        checkpoint: Path | None,
        sharing: ExecutionPlan,
        adam: Adam,
        check: Callable[[TorchEngine, Path], None],
        **options: Any,
    ) -> None:
        """
        Args:
          checkpoint: of unfinished work: the policy as it was then.
          check: looks at a model before it is used, and may refuse it.
          options: `dtype`, `gradient_checkpointing`, `head_chunk` and `seed`, as engines are opened with.
        """
        self._start, self._checkpoint, self._sharing = start, checkpoint, sharing
        self._adam, self._check, self._options = adam, check, options
        self._opened: tuple[Path, Engine] | None = None

    def open(self, directory: Path) -> Engine:
        """The model of a directory; the last one stays open: the policy is scored last, and trained next.

        Raises:
          UserError: as the engines' `open_engine`, and `check`.
        """
        if self._opened is None or self._opened[0] != directory:
            self.close()
            self._opened = directory, self._open(directory)
        return self._opened[1]

    def open_to_score(self, directory: Path) -> Scorer:
        """The same; the base of an adapter is in memory with it."""
        if directory != self._start.base or directory == self._start.policy:
            return self.open(directory)
        engine = self.open(self._start.policy)
        return BaseScorer(engine, engine.model)

    def close(self) -> None:
        """Give back the memory of the one that is open."""
        if self._opened:
            self._opened[1].close()
        self._opened = None

    def _open(self, directory: Path) -> Engine:
        is_policy = directory == self._start.policy
        given = self._options | {
            "continue_optimiser": directory == self._checkpoint or (is_policy and self._start.optimiser),
            "adapter": self._start.adapter if is_policy else None,
        }
        where = self._sharing
        if where.zero:
            return deepspeed.open_engine(
                directory,
                self._adam,
                where.zero,
                where.ranks,
                where.device,
                check=lambda policy: self._check(policy, directory),
                **given,
            )
        engine = open_engine(directory, self._adam, device=str(where.device), **given)
        self._check(engine, directory)
        return engine
