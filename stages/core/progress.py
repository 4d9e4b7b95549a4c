"""Define the progress reports of a stage (`Progress`) and its result (`Summary`). The command line prints both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol


class Progress(Protocol):
    """Receive the reports of a stage. `spo_cli.console` displays them; tests and library users pass `Silent`."""

    def start(self, label: str, total: int, unit: str, most_tokens: int | None = None) -> None:
        """Begin a step of `total` units (rows, states, training steps) under a short label.

        Args:
          most_tokens: upper limit of the tokens of all units together, for units that are done when their tokens are;
            the time left is then estimated from the tokens.
        """
        ...

    def advance(self, done: int = 0, tokens: int = 0, prefilled: int = 0, **figures: float) -> None:
        """Report what was done since the last report.

        Args:
          done: finished units.
          tokens: sampled or trained tokens.
          prefilled: tokens of prefixes that ran through the model.
          figures: current values, such as reward or loss.
        """
        ...

    def note(self, line: str) -> None:
        """Report one line to keep on screen: a skipped part, a resume, a warning."""
        ...


class Silent:
    """Discard all reports."""

    def start(self, label: str, total: int, unit: str, most_tokens: int | None = None) -> None: ...

    def advance(self, done: int = 0, tokens: int = 0, prefilled: int = 0, **figures: float) -> None: ...

    def note(self, line: str) -> None: ...


class OnceAtWork:
    """Hold the notes of a stage back until it begins to work; those of a stage whose output exists are dropped."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._held: list[str] | None = []

    def start(self, label: str, total: int, unit: str, most_tokens: int | None = None) -> None:
        self.release()
        self._progress.start(label, total, unit, most_tokens)

    def advance(self, done: int = 0, tokens: int = 0, prefilled: int = 0, **figures: float) -> None:
        self._progress.advance(done, tokens, prefilled, **figures)

    def note(self, line: str) -> None:
        if self._held is None:
            self._progress.note(line)
        else:
            self._held.append(line)

    def release(self) -> None:
        """Report the notes that were held back, and every later one at once."""
        held, self._held = self._held, None
        for line in held or ():
            self._progress.note(line)


@dataclass(frozen=True)
class Summary:
    """Describe the result of one stage.

    Attributes:
      stage: name of the command.
      out: path of the artefact.
      rows: rows in the parts that this call was responsible for, skipped parts included.
      seconds: wall time of this call.
      up_to_date: whether all output existed already.
      tokens_sampled, tokens_prefilled: tokens that the engine processed in this call (0 if no engine ran).
      reward: mean reward of the rows; None if they have none.
      figures: further numbers to print, name → value, in order.
      notes: lines to print: skipped parts, missing lineage, counts of excluded rows.
    """

    stage: str
    out: str
    rows: int
    seconds: float
    up_to_date: bool = False
    tokens_sampled: int = 0
    tokens_prefilled: int = 0
    reward: float | None = None
    figures: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def report_work(run_stage: Callable[[Progress], Summary], progress: Progress) -> Summary:
    """Run a stage of many, and report nothing if its output exists already: 650 iterations would fill the screen.

    Args:
      run_stage: takes the progress that the stage reports to.
    """
    own = OnceAtWork(progress)
    try:
        summary = run_stage(own)
    except BaseException:
        own.release()
        raise
    if not summary.up_to_date:
        own.release()
    return summary
