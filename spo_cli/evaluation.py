"""`spo eval` in its four forms: sample and grade, regrade, compare two evaluations, tabulate several."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from spo_cli import tables
from spo_cli.console import print_line, print_notes, print_results, print_summary, print_wide
from spo_cli.tables import Mean, Probability, Table
from stages import evaluate
from stages.configs.evaluation_forms import Compare, Config, Format, Regrade, Results
from stages.core.errors import IncompleteInput, UserError
from stages.core.paths import AnyPath, as_path
from stages.core.progress import Progress, Silent, Summary
from stages.evaluation import regrading
from stages.evaluation.artefacts import Evaluation, comparison_warnings, read_evaluation
from stages.evaluation.comparison import Comparison, compare
from stages.evaluation.scores import GROUPS, Result
from stages.maths.intervals import wilson
from stages.shards.names import part_name
from stages.shards.sharding import resolve_shards


@dataclass(frozen=True)
class Report:
    """The output of a form of the command.

    Attributes:
      format: how it is printed.
      tables: tables to print, one below the other.
      values: the same results and more, for JSON.
      notes: lines to print besides the tables.
      summary: summary of the work of this call; None if it only read evaluations.
    """

    format: Format
    tables: Sequence[Table]
    values: dict[str, Any]
    notes: Sequence[str] = ()
    summary: Summary | None = None


def run(config: Config | Regrade | Compare | Results, progress: Progress = Silent()) -> Report:
    """Run one form of the command.

    Raises:
      SpoError: as `stages.evaluate`, `stages.evaluation.regrading` and `stages.evaluation.artefacts`.
    """
    match config:
        case Compare():
            return _compare(config)
        case Results():
            return _show_results(config)
    return _evaluate(config, progress)


def report(found: Report) -> None:
    """Print the results. Formats for files (markdown, latex, json) have only the tables on stdout, notes on stderr."""
    if found.format == "json":
        return print_line(
            json.dumps(tables.plain({**found.values, "notes": found.notes}), indent=2, ensure_ascii=False)
        )
    if found.format == "rich":
        if found.summary:
            print_summary(dataclasses.replace(found.summary, reward=None, figures={}, notes=()))
        for table in found.tables:
            print_results(Text(f"\n{table.title}", "bold"))
            print_wide(tables.rich_table(table))
        for note in found.notes:
            print_line(note)
        return None
    write = tables.markdown if found.format == "markdown" else tables.latex
    print_line("\n\n".join(map(write, found.tables)))
    return print_notes(found.notes)


def _evaluate(config: Config | Regrade, progress: Progress) -> Report:
    """Sample or regrade, then report the evaluation; while parts are missing, only the part that this call wrote."""
    summary = evaluate.run(config, progress) if isinstance(config, Config) else regrading.run(config, progress)
    if not summary.rows:
        return Report(config.format, [], {"evaluation": str(config.out), "results": []}, summary.notes, summary)
    notes = summary.notes
    try:
        evaluation = read_evaluation(config.out)
    except IncompleteInput:
        shard, *others = resolve_shards(config)
        part = config.out / part_name(shard.index, shard.count)
        whole = f"once all parts exist, spo eval --table {config.out} shows the whole evaluation"
        if others or not part.exists():
            return Report(config.format, [], {"evaluation": str(config.out), "results": []}, (*notes, whole), summary)
        evaluation = read_evaluation(part)
        notes = (*notes, f"these are the results of part {shard} only; {whole}")
    found = _report_one(evaluation, str(config.out), config.format)
    return dataclasses.replace(found, notes=[*notes, *found.notes], summary=summary)


def _show_results(config: Results) -> Report:
    """Report one evaluation in detail, or several side by side."""
    named = dict(_name_and_path(given) for given in config.table)
    if len(named) < len(config.table):
        raise UserError("--table must name each evaluation once; two have the same name or path")
    evaluations = {name: read_evaluation(path) for name, path in named.items()}
    if len(evaluations) == 1:
        ((name, evaluation),) = evaluations.items()
        return _report_one(evaluation, name, config.format)
    values = {name: [dataclasses.asdict(one.result()) for one in each.scores] for name, each in evaluations.items()}
    return Report(config.format, [side_by_side(evaluations)], {"evaluations": values})


def _compare(config: Compare) -> Report:
    """Report the differences between two evaluations, paired by question."""
    first, second = (read_evaluation(path) for path in config.compare)
    found = compare(first.scores, second.scores)
    if not found:
        raise UserError(f"{first.path} and {second.path} have no question of the same task and budget in common")
    notes = [f"A is {first.path}, B is {second.path}", *comparison_warnings(first, second), *_excluded_questions(found)]
    values = {"a": str(first.path), "b": str(second.path), "comparisons": [dataclasses.asdict(one) for one in found]}
    return Report(config.format, [comparison_table(found)], values, notes)


def _name_and_path(given: str) -> tuple[str, AnyPath]:
    """Split `NAME=PATH`; a path that exists, or a URL, may itself contain `=`."""
    name, equals, path = given.partition("=")
    named = equals and "://" not in name and ("://" in path or not Path(given).exists())
    return (name, as_path(path)) if named else (given, as_path(given))


def _report_one(evaluation: Evaluation, name: str, format: Format) -> Report:
    """Report one evaluation: all questions, then by level and by subject."""
    results = [one.result() for one in evaluation.scores]
    groups = {kind: [one for each in evaluation.scores for one in each.results_by(kind)] for kind in GROUPS}
    drawn = [results_table(f"Accuracy in % of {name}", results)]
    drawn += [results_table(f"By {kind}", of_kind, kind) for kind, of_kind in groups.items() if of_kind]
    values = {
        "evaluation": name,
        "results": [dataclasses.asdict(one) for one in results],
        **{f"by_{kind}": [dataclasses.asdict(one) for one in of_kind] for kind, of_kind in groups.items()},
    }
    lost, unscored = sum(one.ungradable for one in results), sum(one.unscored for one in results)
    notes = [f"{lost:,} responses could not be graded; the accuracies exclude them"] if lost else []
    notes += [f"{unscored:,} questions without a gradable response; the accuracies exclude them"] if unscored else []
    return Report(format, drawn, values, notes)


def results_table(title: str, results: Sequence[Result], group: str | None = None) -> Table:
    """Return a table with one row per result; `group` is the header of the column by which results are broken down."""
    accuracies = list(dict.fromkeys(name for one in results for name in one.accuracies))
    unanswered, ungradable = any(one.no_answer.mean for one in results), any(one.ungradable for one in results)
    header = ["task", "max tokens", *([group] if group else []), "questions", *accuracies, "length"]
    header += [*(["no answer"] if unanswered else []), "truncated"]
    rows = [
        [
            one.task or "–",
            one.max_tokens,
            *([one.group] if group else []),
            one.questions,
            *(_percent(one.accuracies.get(name)) for name in accuracies),
            Mean(one.length.mean, one.length.standard_error),
            *([_percent(one.no_answer)] if unanswered else []),
            _percent(one.truncated),
            *([one.ungradable] if ungradable else []),
        ]
        for one in results
    ]
    return Table(title, [*header, *(["ungradable"] if ungradable else [])], rows)


def side_by_side(evaluations: dict[str, Evaluation]) -> Table:
    """Return a table with one row per evaluation, and one column per task and budget of any of them."""
    found = {
        name: {(one.task, one.max_tokens): one.result() for one in evaluation.scores}
        for name, evaluation in evaluations.items()
    }
    settings = list(dict.fromkeys(setting for results in found.values() for setting in results))
    samples = sorted({one.samples for results in found.values() for one in results.values()})
    header = ["evaluation", *(f"{task or '–'} {budget or ''}".strip() for task, budget in settings)]
    rows = []
    for name, results in found.items():
        averages = [
            results[one].accuracies.get(f"avg@{results[one].samples}") if one in results else None for one in settings
        ]
        rows.append([name, *map(_percent, averages)])
    return Table(f"Accuracy in %, avg@{'/'.join(map(str, samples))}", header, rows)


def comparison_table(found: Sequence[Comparison]) -> Table:
    """Return a table with one row per task, budget and accuracy of two evaluations A and B."""
    header = ["task", "max tokens", "accuracy", "questions", "A", "B", "B − A", "p", "B won", "B lost", "tied"]
    rows = [
        [
            one.task or "–",
            one.max_tokens[0] if len(set(one.max_tokens)) == 1 else " and ".join(map(str, one.max_tokens)),
            one.accuracy,
            one.questions,
            _percent(one.first),
            _percent(one.second),
            Mean.percent(one.difference.mean, one.difference.standard_error),
            Probability(one.p_value),
            one.won,
            one.lost,
            one.tied,
        ]
        for one in found
    ]
    return Table("Accuracy in %, paired by question; p of a two-sided sign-flip permutation test", header, rows)


def _excluded_questions(found: Sequence[Comparison]) -> list[str]:
    """Return notes on the questions that only one of the two evaluations has, per task."""
    lines = []
    for task, (in_a, in_b) in {one.task: (one.only_first, one.only_second) for one in found}.items():
        for name, count in (("A", in_a), ("B", in_b)):
            if count:
                lines.append(f"{task}: excluded {count:,} questions to which only {name} has graded responses")
    return lines


def _percent(estimate: Any) -> Mean | None:
    """Return a fraction in percent; with its Wilson interval if all questions agree on 0 or 1: `0.0 (0.0 to 7.4)`."""
    if estimate is None:
        return None
    percent = Mean.percent(estimate.mean, estimate.standard_error)
    if estimate.standard_error == 0 and estimate.mean in (0, 1) and estimate.questions:
        low, high = wilson(estimate.mean, estimate.questions)
        return dataclasses.replace(percent, interval=(float(low), float(high)))
    return percent
