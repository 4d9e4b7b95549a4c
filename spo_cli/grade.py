"""`spo grade`: print the verdicts of `stages.grade`, the suspicious ones first, with their reasons."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from spo_cli.console import print_line, print_results
from spo_cli.trajectory import printable
from stages import grade
from stages.configs.grade import Config
from stages.core.progress import Progress, Silent
from stages.grade import GradedRow, Grades

_EXCERPT = 48  # characters of a text in a cell
_STYLES = {"right": "green", "wrong": "red", "no answer": "yellow", "not gradable": "yellow"}


def run(config: Config, progress: Progress = Silent()) -> Grades:
    """Grade the responses, as `stages.grade.run`."""
    return grade.run(config, progress)


def report(found: Grades) -> None:
    """Print the counts and the first rows, or all rows as JSON."""
    config = found.config
    if config.json:
        values = {"task": found.task, "counts": found.counts, "rows": [one.as_dict() for one in found.rows]}
        return print_line(json.dumps(values, indent=2, ensure_ascii=False))
    total = sum(found.counts.values())
    shares = [f"{label} {count:,} ({count / total:.0%})" for label, count in found.counts.items()]
    suspicious = sum(bool(one.suspicion) for one in found.rows)
    shares += [f"suspicious {suspicious:,}"] * bool(suspicious)
    print_line(f"spo grade: {total:,} responses, task {found.task}: {', '.join(shares) or 'nothing to grade'}")
    shown = found.rows[: config.rows]
    if config.explain:
        for one in shown:
            print_results(Text(), *_explanation(one))
    elif shown:
        print_results(Text(), _table(shown))
    if len(shown) < total:
        print_line(f"{total - len(shown):,} more: --rows N shows more of them, --out FILE.parquet and --json all")
    if config.out is not None:
        print_line(f"written to {config.out}")
    return None


def _table(rows: Sequence[GradedRow]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("row", "verdict", "answer", "reference", "read from", "reason", "response ends with"):
        table.add_column(name, justify="right" if name == "row" else "left", overflow="fold")
    for one in rows:
        verdict = one.verdict
        reason = str(verdict.reason) + (f" ({one.suspicion})" if one.suspicion else "")
        table.add_row(
            str(one.row),
            _label(one),
            _cell(verdict.answer or "–"),
            _cell(one.reference),
            str(verdict.place),
            Text(reason, "yellow" if one.suspicion else ""),
            _cell(one.response[-_EXCERPT:]),
        )
    return table


def _explanation(one: GradedRow) -> Iterator[Text]:
    """Yield the lines that lead from a response to its verdict."""
    verdict = one.verdict
    name = f"row {one.row}" + (f"  {one.id}" if one.id else "")
    yield Text.assemble((name, "bold"), "  ", _label(one), f"  {verdict.reason}  ", (one.suspicion, "yellow"))
    facts = {
        "response ends with": one.response[-200:],
        "read from": str(verdict.place),
        "stated": verdict.stated or "–",
    }
    facts |= {step.name: step.result for step in verdict.steps}
    facts |= {"answer": verdict.answer or "–", "reference": one.reference}
    for label, value in facts.items():
        yield Text.assemble((f"  {label}  ", "cyan"), printable(value))


def _label(one: GradedRow) -> Text:
    reward = one.verdict.reward
    text = f"reward {reward:g}" if one.label == "reward" and reward is not None else one.label
    return Text(text, _STYLES.get(one.label, ""))


def _cell(text: str) -> Text:
    return Text(printable(text if len(text) <= _EXCERPT else text[: _EXCERPT - 1] + "…"))
