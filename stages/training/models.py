"""Open the models of a training call, one at a time, each checked before it is used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.optimization import deepspeed
from stages.optimization.lora import BaseScorer
from stages.optimization.optimizer import AdamWConfig
from stages.optimization.step import Engine, Scorer
from stages.optimization.torch import TorchEngine, open_engine
from stages.training.execution import ExecutionPlan
from stages.training.starting_point import StartingPoint


class Models:
    """Opens the policy, the models that sampled, and the reference; at most one is in memory."""

    def __init__(
        self,
        start: StartingPoint,
        checkpoint: Path | None,
        plan: ExecutionPlan,
        adam: AdamWConfig,
        check: Callable[[TorchEngine, Path], None],
        **options: Any,
    ) -> None:
        """Remember how models are opened; none is opened yet.

        Args:
          checkpoint: policy of an unfinished run, to resume from; None if there is none.
          check: called with each model and its directory after it is opened; raises a UserError to refuse it.
          options: `dtype`, `gradient_checkpointing`, `head_chunk` and `seed` of the engines' `open_engine`.
        """
        self._start, self._checkpoint, self._plan = start, checkpoint, plan
        self._adam, self._check, self._options = adam, check, options
        self._opened: tuple[Path, Engine] | None = None

    def open(self, directory: Path) -> Engine:
        """Return the engine of a model; close the one before, unless it is the same model.

        The policy scores last and is trained next, so it is opened once for both.

        Raises:
          UserError: as `open_engine` of the engine, and `check`.
        """
        if self._opened is None or self._opened[0] != directory:
            self.close()
            self._opened = directory, self._open(directory)
        return self._opened[1]

    def open_to_score(self, directory: Path) -> Scorer:
        """Return a scorer of a model. The base of an adapter is scored with the policy that contains it."""
        if directory != self._start.base or directory == self._start.policy:
            return self.open(directory)
        engine = self.open(self._start.policy)
        return BaseScorer(engine, engine.model)

    def close(self) -> None:
        """Free the memory of the open model, if there is one."""
        if self._opened:
            self._opened[1].close()
        self._opened = None

    def _open(self, directory: Path) -> Engine:
        is_policy = directory == self._start.policy
        options = self._options | {
            "continue_optimizer": directory == self._checkpoint or (is_policy and self._start.resumes_optimizer),
            "adapter": self._start.adapter if is_policy else None,
        }
        plan = self._plan
        if plan.zero:
            return deepspeed.open_engine(
                directory,
                self._adam,
                plan.zero,
                plan.ranks,
                plan.device,
                check=lambda policy: self._check(policy, directory),
                **options,
            )
        engine = open_engine(directory, self._adam, device=str(plan.device), **options)
        self._check(engine, directory)
        return engine
