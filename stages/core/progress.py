"""What a stage tells while it works (`Progress`) and when it is done (`Summary`). The surface prints it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


class Progress(Protocol):
    """Where a stage reports; `spo_cli.console` draws it, tests and libraries pass `Silent`."""

    def start(self, label: str, total: int, unit: str) -> None:
        """A long step begins: `total` units of work (rows, states, steps) under a short label."""
        ...

    def advance(self, done: int = 0, tokens: int = 0, **figures: float) -> None:
        """`done` more units are finished, `tokens` more went through; figures such as reward or loss are shown."""
        ...

    def note(self, line: str) -> None:
        """One line worth keeping: a part skipped, a resume, a warning."""
        ...


class Silent:
    """Reports nothing."""

    def start(self, label: str, total: int, unit: str) -> None: ...

    def advance(self, done: int = 0, tokens: int = 0, **figures: float) -> None: ...

    def note(self, line: str) -> None: ...


@dataclass(frozen=True)
class Summary:
    """How a stage ended.

    Attributes:
      stage: the verb.
      out: where the artefact lies.
      rows: rows in the parts this call is answerable for (skipped ones included).
      seconds: wall time of this call.
      up_to_date: nothing had to be done.
      tokens_sampled, tokens_prefilled: what the engine did in this call (0 where no engine ran).
      reward: mean reward of the rows, if they have one.
      figures: other numbers worth printing, name → value, in order.
      notes: lines for the reader: parts skipped, no lineage, counts of what was left out.
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
