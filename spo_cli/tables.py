"""Format a table of results for the screen, as Markdown, as LaTeX (booktabs), or as JSON values."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.table import Table as RichTable
from rich.text import Text


@dataclass(frozen=True)
class Mean:
    """A mean with its standard error, shown as `97.3 ± 0.5`; a NaN error is omitted.

    Attributes:
      interval: shown in place of the error if it is given: `0.0 (0.0 to 7.4)`.
    """

    mean: float
    standard_error: float
    scale: float = 1.0
    interval: tuple[float, float] | None = None

    @classmethod
    def percent(cls, mean: float, standard_error: float) -> Mean:
        """Return a fraction that is shown in percent."""
        return cls(mean, standard_error, 100.0)


@dataclass(frozen=True)
class Probability:
    """A p-value."""

    value: float


Cell = str | int | Mean | Probability | None


@dataclass(frozen=True)
class Table:
    """Rows under a header; columns of text are aligned left, all others right."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def aligned_left(self) -> list[bool]:
        """Return, for each column, whether it holds only text."""
        return [all(isinstance(row[i], str | None) for row in self.rows) for i in range(len(self.header))]


def show(cell: Cell, plus_minus: str = "±") -> str:
    """Return a cell as text."""
    match cell:
        case Mean(mean, error, scale, interval):
            spread = f" {plus_minus} {scale * error:.1f}" if math.isfinite(error) else ""
            if interval:
                spread = f" ({scale * interval[0]:.1f} to {scale * interval[1]:.1f})"
            return f"{round(scale * mean, 1) + 0.0:.1f}{spread}"  # + 0.0 turns -0.0 into 0.0
        case Probability(value):
            return f"{value:.4f}" if value >= 1e-4 else "< 0.0001"
        case int():
            return f"{cell:,}"
    return cell or ""


def rich_table(table: Table) -> RenderableType:
    """Return a table for the screen."""
    drawn = RichTable(box=None, padding=(0, 2, 0, 0), header_style="dim", title_justify="left")
    for name, left in zip(table.header, table.aligned_left(), strict=True):
        drawn.add_column(Text(name), justify="left" if left else "right", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*(Text(show(cell)) for cell in row))
    return drawn


def markdown(table: Table) -> str:
    """Return a table as GitHub-flavored Markdown, under its title."""
    rules = [":---" if left else "---:" for left in table.aligned_left()]
    lines = [table.header, rules, *([show(cell) for cell in row] for row in table.rows)]
    return f"**{table.title}**\n\n" + "\n".join(f"| {' | '.join(map(_in_markdown, line))} |" for line in lines)


def latex(table: Table) -> str:
    """Return a table as a LaTeX `tabular` with booktabs rules; the title is a comment."""
    columns = "".join("l" if left else "r" for left in table.aligned_left())
    rows = [" & ".join(_in_latex(cell) for cell in row) + r" \\" for row in table.rows]
    header = " & ".join(_in_latex(name) for name in table.header) + r" \\"
    return "\n".join(
        [
            f"% {table.title}; needs \\usepackage{{booktabs}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            header,
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def plain(value: Any) -> Any:
    """Return a value for JSON: NaN and infinity become null."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _in_markdown(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "–": "--",
    **{character: "\\" + character for character in "&%$#_{}"},
}


def _in_latex(cell: Cell) -> str:
    if isinstance(cell, Mean):
        return "$" + show(cell, r"\pm") + "$"
    if isinstance(cell, Probability):
        return f"${show(cell)}$"
    return re.sub(r"[\\~^−–&%$#_{}]", lambda match: _LATEX[match[0]], show(cell))
