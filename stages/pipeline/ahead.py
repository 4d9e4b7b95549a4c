"""Sample the rollouts of the next iteration while this one trains: `[run] overlap = 1`.

The plan says which weights sample, so the artefacts are the same whether the two stages run side by side or one after
the other, and a killed run resumes in either way.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Self

from stages import rollout
from stages.core.errors import IncompleteInput
from stages.core.paths import AnyPath
from stages.core.progress import Progress, Summary, report_work
from stages.pipeline.planning import Plan
from stages.sampling.pool import SamplerPool
from stages.shards.parts import open_artefact
from stages.shards.schemas import TRAJECTORIES

if TYPE_CHECKING:
    from stages.cluster.session import Session

_END_SECONDS = 30.0
"""Seconds in which the sampling thread ends after its workers have."""


class RolloutsAhead:
    """The rollouts of the iterations of a plan, each at most once, begun before or during the training before it.

    Leaving the `with` block waits for the thread; close the pool first, which ends what it waits for.
    """

    def __init__(self, plan: Plan, progress: Progress, session: Session | None) -> None:
        self._plan, self._progress, self._session = plan, progress, session
        self._thread: threading.Thread | None = None
        self._shown = BackgroundProgress(progress)
        self._summaries: dict[int, Summary] = {}
        self._error: BaseException | None = None
        self._warned = False

    def begin(self, number: int, pool: SamplerPool) -> bool:
        """Begin the rollouts of an iteration, if the plan has sampling ahead of training and has this iteration.

        Returns:
          Whether they go on while the caller works; if not, they are finished, or nothing was to be done.
        """
        if not self._plan.overlap or number >= len(self._plan.iterations):
            return False
        config = self._plan.iterations[number].rollout
        if not self._is_to_do(config.out) or not self._are_apart():
            self._summaries[number] = report_work(lambda own: rollout.run(config, own, pool), self._progress)
            return False

        def work() -> None:
            try:
                self._summaries[number] = rollout.run(config, self._shown, pool)
            except BaseException as error:  # `finish` raises it
                self._error = error

        self._shown = BackgroundProgress(self._progress)
        self._thread = threading.Thread(target=work, name="rollouts ahead", daemon=True)
        self._thread.start()
        return True

    def finish(self) -> None:
        """Wait for the rollouts that were begun.

        Raises:
          SpoError: as `rollout.run`.
        """
        if self._thread is None:
            return
        self._shown.show()
        self._thread.join()
        self._thread = None
        error, self._error = self._error, None
        if error:
            raise error

    def take(self, number: int, pool: SamplerPool) -> Summary:
        """Return the summary of the rollouts of an iteration, which are sampled now if they were not begun before."""
        if number in self._summaries:
            return self._summaries.pop(number)
        config = self._plan.iterations[number].rollout
        return report_work(lambda own: rollout.run(config, own, pool), self._progress)

    def _is_to_do(self, out: AnyPath) -> bool:
        try:
            open_artefact(out, TRAJECTORIES)
        except IncompleteInput:
            return True
        return False

    def _are_apart(self) -> bool:
        """Whether samplers and trainers have processes and GPUs of their own. Starts Ray, which the thread may not."""
        if self._session is None:
            remedy = "pass --executor ray to do both at a time"
        elif self._session.cluster.share_gpus and self._session.gpus:
            remedy = "set share_gpus = false in [ray] to do both at a time"
        else:
            self._session.begin()
            return True
        if not self._warned:
            self._warned = True
            self._progress.note(f"overlap: sampling and training take turns here, so no time is saved: {remedy}")
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread:
            self._thread.join(_END_SECONDS)


class BackgroundProgress:
    """A `Progress` that keeps the step of a thread off the screen, where another step is shown, until `show`."""

    def __init__(self, screen: Progress) -> None:
        self._screen, self._turn = screen, threading.Lock()
        self._shown = False
        self._step: tuple[str, int, str, int | None] | None = None
        self._done = [0, 0, 0]
        self._figures: dict[str, float] = {}

    def start(self, label: str, total: int, unit: str, most_tokens: int | None = None) -> None:
        """See `Progress.start`."""
        with self._turn:
            self._step, self._done, self._figures = (label, total, unit, most_tokens), [0, 0, 0], {}
            if self._shown:
                self._screen.start(*self._step)

    def advance(self, done: int = 0, tokens: int = 0, prefilled: int = 0, **figures: float) -> None:
        """See `Progress.advance`."""
        with self._turn:
            if self._shown:
                self._screen.advance(done, tokens, prefilled, **figures)
                return
            self._done = [a + b for a, b in zip(self._done, (done, tokens, prefilled), strict=True)]
            self._figures |= figures

    def note(self, line: str) -> None:
        """See `Progress.note`."""
        self._screen.note(line)

    def show(self) -> None:
        """Show the step from now on, with what it has done so far."""
        with self._turn:
            self._shown = True
            if self._step:
                self._screen.start(*self._step)
                self._screen.advance(*self._done, **self._figures)
