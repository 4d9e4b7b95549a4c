"""Print everything that `spo` prints: progress and errors on stderr, results and summaries on stdout.

On a terminal, a live bar is shown below the lines. Elsewhere (a log, a SLURM output file), a plain line appears every
few seconds. Rich reads `NO_COLOR`, `FORCE_COLOR` and `COLUMNS` itself.
"""

from __future__ import annotations

import math
import threading
import traceback
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column, Table
from rich.text import Text

from spo_cli.next_step import next_command
from spo_cli.screen import one_line, stderr, stdout
from stages.core.progress import Summary

PLAIN_INTERVAL = 5.0  # seconds between two plain lines of one step
_WINDOW = 30.0  # seconds over which the displayed rates are averaged, or more if units take longer


def print_line(text: str) -> None:
    """Print one plain line on stdout."""
    stdout().print(text, markup=False, soft_wrap=True)


def print_results(*renderables: RenderableType) -> None:
    """Print Rich renderables on stdout."""
    console = stdout()
    for renderable in renderables:
        console.print(renderable)


def print_wide(renderable: RenderableType) -> None:
    """Print a renderable on stdout in its full width: its lines are never cut or folded on a narrow screen."""
    console = stdout()
    unfolded = console.options.update_width(10_000)
    console.width = max(console.width, console.measure(renderable, options=unfolded).maximum)
    console.print(renderable)


def print_notes(lines: Iterable[str]) -> None:
    """Print plain lines on stderr, so that results on stdout can be redirected."""
    for line in lines:
        stderr().print(one_line(line), markup=False, soft_wrap=True)


def print_traceback(error: BaseException) -> None:
    """Print a traceback on stderr."""
    stderr().print("".join(traceback.format_exception(error)).rstrip(), markup=False, soft_wrap=True)


def print_error(title: str, message: str) -> None:
    """Print `spo rollout: message` on stderr."""
    stderr().print(Text.assemble((f"{title}: ", "bold red"), one_line(message)), soft_wrap=True)


def number(value: float) -> str:
    """Return a number as text: integers with thousands separators, others with four significant digits."""
    if not math.isfinite(value):
        return str(value)
    if isinstance(value, int) or (value.is_integer() and abs(value) >= 1000):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def rounded_rate(rate: float) -> float:
    """Return a number of tokens per second without needless digits: 3212.6 → 3213, but 1.234 stays."""
    return round(rate) if rate >= 100 else rate


def duration(seconds: float) -> str:
    """Return a duration as text: `7.6 s`, `26 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 10:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def print_summary(summary: Summary) -> None:
    """Print the summary of a stage as aligned lines on stdout."""
    head = Text.assemble((f"spo {summary.stage}", "bold"), " → ", summary.out)
    if summary.up_to_date:
        head.append("  up to date", "green")
    console = stdout()
    console.print(head, soft_wrap=True)
    if summary.stage == "run" and summary.up_to_date:
        return
    console.print(_summary_table(summary))
    for note in summary.notes:
        console.print(Text(f"  {one_line(note)}", "dim"), soft_wrap=True)
    if command := next_command(summary):
        console.print(Text(f"next: {command}", "dim"), soft_wrap=True)


def _summary_table(summary: Summary) -> Table:
    figures: dict[str, float] = {"rows": summary.rows}
    if summary.reward is not None:
        figures["reward"] = summary.reward
    if summary.tokens_sampled or summary.tokens_prefilled:
        figures["tokens sampled"] = summary.tokens_sampled
        figures["tokens prefilled"] = summary.tokens_prefilled
        rate = rounded_rate(summary.tokens_sampled / max(summary.seconds, 1e-9))
        figures["tokens/s with loading"] = rate  # the progress line counts from the first token
    figures["seconds"] = round(summary.seconds, 1)
    table = Table(box=None, show_header=False, padding=(0, 0, 0, 2))
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    figures |= summary.figures
    for name, value in figures.items():
        error = figures.get(f"{name} standard error", math.nan)
        if not name.endswith(" standard error"):
            table.add_row(Text(name, "cyan"), number(value), f"± {number(error)}" if math.isfinite(error) else "")
    return table


@dataclass
class _Step:
    """The progress of one step.

    Attributes:
      most_tokens: upper limit of the tokens of all units; None if units have none.
      recent: (time, tokens) of the reports of the last `_WINDOW` seconds.
      finished: (time, done) of the reports with finished units, from the last one before that window on. A rate between
        two of them does not jump when units finish together after a long time.
    """

    label: str
    total: int
    unit: str
    started: float
    most_tokens: int | None = None
    done: int = 0
    tokens: int = 0
    prefilled: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    recent: deque[tuple[float, int]] = field(default_factory=deque)
    finished: deque[tuple[float, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.recent.append((self.started, 0))
        self.finished.append((self.started, 0))

    def advance(self, done: int, tokens: int, prefilled: int, figures: dict[str, float]) -> None:
        self.done += done
        self.tokens += tokens
        self.prefilled += prefilled
        self.figures.update(figures)
        now = monotonic()
        self.recent.append((now, self.tokens))
        while len(self.recent) > 2 and self.recent[0][0] < now - _WINDOW:
            self.recent.popleft()
        if done:
            self.finished.append((now, self.done))
            while len(self.finished) > 2 and self.finished[1][0] <= now - _WINDOW:
                self.finished.popleft()

    @property
    def percent(self) -> int:
        """How much is done, in percent; of units with a limit of tokens, by tokens."""
        if self.most_tokens is None:
            return 100 * self.done // max(self.total, 1)
        return int(100 * self.tokens / max(self.tokens + self._tokens_left(), 1.0))

    def now(self) -> str:
        """Return the current state: `190/512 rows · 12.3 rows/s · 4,210 tokens/s · 26 s left · reward 0.41`.

        With a limit of tokens: `5/16 rows · 640 of at most 1,024 tokens · 99 prefilled · 80 tokens/s · 4.8 s left`.
        """
        amount = f"{self.done:,}/{self.total:,} {self.unit}"
        token_rate = self._token_rate()
        if self.most_tokens is not None:
            amount += f" · {self.tokens:,} of at most {self.most_tokens:,} tokens"
            amount += f" · {self.prefilled:,} prefilled" if self.prefilled else ""
            seconds = self._tokens_left() / token_rate if token_rate else 0.0
            return self._line(amount, 0.0, token_rate, seconds)
        (begin, done), (end, last) = self.finished[0], self.finished[-1]
        rate = _rate(last - done, end - begin)
        since = self.recent[-1][0] - end
        seconds = max((self.total - self.done) / rate - since, 0.0) if rate else 0.0
        return self._line(amount, rate, token_rate, seconds)

    def whole(self) -> str:
        """Return the closing line, with rates over the whole step."""
        seconds = self.recent[-1][0] - self.started
        of = "" if self.done >= self.total else f" of {self.total:,}"
        amount = f"{self.done:,}{of} {self.unit} in {duration(seconds)}"
        return self._line(amount, _rate(self.done, seconds), _rate(self.tokens, seconds), 0.0)

    def _token_rate(self) -> float:
        (begin, tokens), (end, _) = self.recent[0], self.recent[-1]
        return _rate(self.tokens - tokens, end - begin)

    def _tokens_left(self) -> float:
        """Return how many tokens are still to be sampled.

        The units in flight are as long as those that are finished as far as is known: their number times all tokens so
        far per finished unit, which estimates the mean length without bias from short units finishing first. Until one
        is finished, the limit.
        """
        if self.most_tokens is None or self.done >= self.total:
            return 0.0
        if not self.done:
            return max(float(self.most_tokens - self.tokens), 0.0)
        return (self.total - self.done) * min(self.tokens / self.done, self.most_tokens / self.total)

    def _line(self, amount: str, rate: float, token_rate: float, seconds: float) -> str:
        parts = [
            amount,
            f"{number(rate)} {self.unit}/s" if rate else "",
            f"{number(rounded_rate(token_rate))} tokens/s" if token_rate else "",
            f"{duration(seconds)} left" if seconds and self.done < self.total else "",
            *(f"{name} {number(value)}" for name, value in self.figures.items()),
        ]
        return " · ".join(part for part in parts if part)


def _rate(amount: int, seconds: float) -> float:
    return amount / seconds if seconds > 0 else 0.0


class Reporter:
    """Display a `stages.core.progress.Progress`. A context manager: leaving it removes the live bar from the screen."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or stderr()
        self.step: _Step | None = None
        self.bar: Progress | None = None
        self.printed = 0.0
        self.turn = threading.RLock()  # several threads report where several workers sample

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._close_step()

    def start(self, label: str, total: int, unit: str, most_tokens: int | None = None) -> None:
        """Close the previous step, and begin the next one."""
        with self.turn:
            self._close_step()
            self.step = _Step(label, total, unit, started=monotonic(), most_tokens=most_tokens)
            if self.console.is_terminal:
                line = TextColumn("{task.fields[line]}", markup=False, table_column=Column(no_wrap=True))
                columns = TextColumn("{task.description}"), BarColumn(24), line
                self.bar = Progress(*columns, console=self.console, transient=True)
                self.bar.add_task(label, total=total, line=f"0/{total:,} {unit}")
                self.bar.start()
            else:
                self._plain(f"{label}: {total:,} {unit} to do")

    def advance(self, done: int = 0, tokens: int = 0, prefilled: int = 0, **figures: float) -> None:
        """Update the bar, or print a line if the last one is at least `PLAIN_INTERVAL` old."""
        with self.turn:
            if self.step is None:
                raise ValueError("advance() before start(): there is no step to advance")
            self.step.advance(done, tokens, prefilled, figures)
            if self.bar is not None:
                self.bar.update(self.bar.task_ids[0], completed=self.step.done, line=self.step.now())
            elif monotonic() - self.printed >= PLAIN_INTERVAL:
                self._plain(f"{self.step.label}: {self.step.percent} % · {self.step.now()}")

    def note(self, line: str) -> None:
        """Print one line; the bar of an unfinished step stays below it."""
        with self.turn:
            if self.step is not None and self.step.done >= self.step.total:
                self._close_step()
            self.console.print(one_line(line), markup=False, soft_wrap=True)

    def _close_step(self) -> None:
        step, bar, self.step, self.bar = self.step, self.bar, None, None
        if bar is not None:
            bar.stop()
        if step is not None:
            self._plain(f"{step.label}: {step.whole()}")

    def _plain(self, line: str) -> None:
        self.printed = monotonic()
        self.console.print(line, markup=False, soft_wrap=True)
