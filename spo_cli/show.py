"""`spo show`: print the lineage, schema, statistics and a trajectory of an artefact, a model, or the state of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from spo_cli.ancestry import ancestry, is_model
from spo_cli.console import number, print_line, print_results, print_wide
from spo_cli.excerpt import excerpt
from spo_cli.figures import COLUMNS, statistics
from spo_cli.inventory import holds_iterations, holds_parts, inventory, model_figures
from spo_cli.learning_curve import COST_NOTES, draw_costs, draw_curve, read_points
from spo_cli.listing import draw_list, select
from spo_cli.screen import stdout
from spo_cli.tables import plain
from spo_cli.trajectory import draw
from spo_cli.trees import advantages_by_id, draw_tree, load_nodes, nodes_behind, trajectories_of, tree_statistics
from stages.configs.show import Config
from stages.core.errors import IncompleteInput, UserError
from stages.core.paths import AnyPath
from stages.core.progress import Progress, Silent
from stages.models.checkpoints import digest
from stages.reporting.sources import find
from stages.responses.trees import are_trees
from stages.shards.lineage import Lineage, read_lineage
from stages.shards.parts import Artefact, open_artefact
from stages.shards.schemas import ARTEFACT, BY_STAGE, Schema
from stages.training import mismatch

COUNTED = {
    "rollout": ("prompts_overlong", "ungradable"),
    "eval": ("prompts_overlong",),
    "estimate": (
        "states",
        "rollouts",
        "rollouts_saved",
        "questions_decided",
        "questions_alone",
        "ungradable",
        "responses_ungradable",
        "segments_ungradable",
    ),
    "train": (
        "trajectories",
        "waiting",
        "aged_out",
        "crowded_out",
        "beyond_limit",
        "questions_uniform",
        "trajectories_unfinished",
    ),
}
"""Stage → the counts of its lineage to print where they are not 0."""


def run(config: Config, progress: Progress = Silent()) -> None:
    """Print the schema of all tables, or the description of a path.

    Raises:
      UserError: the path does not exist, or is not an artefact, model or run.
      IncompleteInput: an artefact lacks parts; each of its parts can still be shown.
    """
    if config.path is None:
        _show_schemas()
    elif not config.path.exists():
        raise UserError(f"{config.path} does not exist; expected an artefact, a part, a model directory or a run")
    elif is_model(config.path):
        _show_model(config.path, config)
    elif config.path.is_file() or holds_parts(config.path):
        _show_artefact(config.path, config)
    else:
        _show_run(config.path, config)


def _show_schemas() -> None:
    for schema in BY_STAGE.values():
        print_results(*_schema(schema))


def _schema(schema: Schema) -> tuple[RenderableType, ...]:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
    for column in schema.columns:
        kind = str(column.type).replace("element: ", "").replace("item: ", "")
        table.add_row(Text(column.name, "cyan"), Text(kind, "dim"), Text(column.doc))
    head = Text.assemble((ARTEFACT[schema.stage], "bold"), f", made by spo {schema.stage}, version {schema.version}")
    return head, table, Text()


def _show_artefact(path: AnyPath, config: Config) -> None:
    artefact = open_artefact(path)
    if config.schema:
        return print_results(*_schema(artefact.schema))
    if config.selects:
        return _show_selected(artefact, config)
    stage, fingerprint, lineage = artefact.schema.stage, artefact.fingerprint(), artefact.lineage
    figures = _statistics(artefact, config) | _counted([part.lineage for part in artefact.parts])
    if config.json:
        return _print_json(path, stage, fingerprint, lineage, figures)
    if lineage is None:
        print_results(Text(f"no lineage: made by another tool, read as a table of spo {stage}", "yellow"))
    else:
        print_results(_heading("lineage"), ancestry(path, fingerprint, lineage, config.depth))
    count = len(artefact.parts)
    print_results(_heading(f"statistics of {count} part{'s' * (count > 1)}"), _figures(figures))
    if artefact.rows:
        _draw(artefact, config)
    return None


def _show_selected(artefact: Artefact, config: Config) -> None:
    """List the trajectories that the options select, or draw a sample of them."""
    found = select(artefact, config.where, config.question, config.sample, config.trajectories)
    if config.json:
        return print_line(json.dumps(plain(found.to_pylist()), indent=2, ensure_ascii=False))
    if config.sample is None:
        print_results(draw_list(found, stdout().width), Text(f"{found.num_rows:,} trajectories", "dim"))
        return None
    for name in dict.fromkeys(found["id"].to_pylist()):
        trajectory, note = excerpt(artefact, name, None, config.trajectories)
        print_results(draw(trajectory), *([Text(note, "yellow")] if note else []), Text())
    return None


def _statistics(artefact: Artefact, config: Config) -> dict[str, Any]:
    """Return the statistics of an artefact; trees without readable trajectories are described by segments only."""
    stage, nodes = artefact.schema.stage, None
    if stage != "eval":
        with suppress(UserError, IncompleteInput):
            nodes = nodes_behind(artefact, config.trajectories)
    if nodes and stage == "rollout":
        return tree_statistics(stage, None, nodes)
    table = artefact.read_all(COLUMNS[stage])
    if nodes:
        return tree_statistics(stage, table, nodes)
    estimated = sum(part.lineage.counts.get("segments", part.rows) for part in artefact.parts if part.lineage)
    return statistics(stage, table, max(0, estimated - table.num_rows))


def _counted(lineages: Sequence[Lineage | None]) -> dict[str, Any]:
    """Return counts that the rows do not contain: rollouts saved, samples excluded from training."""
    counted = [
        {name: one.counts[name] for name in COUNTED.get(one.stage, ()) if one.counts.get(name)} if one else {}
        for one in lineages
    ]
    totals = {name: sum(counts.get(name, 0) for counts in counted) for name in dict.fromkeys(chain(*counted))}
    return {"counted": totals} if totals else {}


def _draw(artefact: Artefact, config: Config) -> None:
    """Draw a tree or a trajectory; if none is requested and none can be read, print the reason instead."""
    if config.tree is not None:
        return _draw_tree(artefact, config.tree, config.trajectories)
    try:
        trajectory, note = excerpt(artefact, config.trajectory, config.row, config.trajectories)
    except (UserError, IncompleteInput) as error:
        if config.trajectory is not None or config.row is not None:
            raise
        return print_results(Text(f"no trajectory drawn: {error}", "yellow"))
    print_results(_heading("trajectory"), draw(trajectory))
    if note:
        print_results(Text(note, "yellow"))
    return None


def _draw_tree(artefact: Artefact, question: str, trajectories: AnyPath | None) -> None:
    if artefact.schema.stage not in ("rollout", "segment", "estimate"):
        raise UserError(
            f"--tree requires trajectories, cutpoints or advantages; {artefact.path} holds "
            f"{ARTEFACT[artefact.schema.stage]}"
        )
    sampled = trajectories_of(artefact, trajectories)
    nodes = load_nodes(sampled)
    valued = artefact.schema.stage == "estimate" and are_trees(sampled)
    advantage = advantages_by_id(artefact, question, nodes) if valued else {}
    print_results(_heading("tree"), draw_tree(nodes, question, advantage))


def _show_model(path: AnyPath, config: Config) -> None:
    # The digest reads all weights, so a model in a store is not digested.
    fingerprint, lineage = digest(path) if isinstance(path, Path) else "", read_lineage(path)
    summary = lineage.summary if lineage else {}
    differences = {name.partition("/")[2]: value for name, value in summary.items() if name.startswith("mismatch/")}
    figures = model_figures(path) | _counted([lineage]) | ({"mismatch": differences} if differences else {})
    if config.json:
        return _print_json(path, lineage.stage if lineage else "", fingerprint, lineage, figures)
    if lineage is None:
        print_results(Text("no lineage: this model was made by another tool", "yellow"))
    else:
        print_results(_heading("lineage"), ancestry(path, fingerprint, lineage, config.depth))
    print_results(_heading("model"), _figures(figures), *(Text(line, "yellow") for line in mismatch.warn(summary)))
    return None


def _show_run(path: AnyPath, config: Config) -> None:
    """Print one row per iteration; with --files, or where no iteration is complete, one row per artefact and model."""
    if config.files or not holds_iterations(path):
        return _show_files(path, config)
    try:
        found = find([path])
    except UserError:
        if config.cost or config.json:
            raise
        return _show_files(path, config)
    points = read_points(found)
    if config.json:
        return print_line(json.dumps(plain(points), indent=2))
    print_results(_heading(str(path)))
    for drawn in [draw_costs(points)] if config.cost else draw_curve(points):
        print_wide(drawn)
    notes = [
        *found.notes,
        *(COST_NOTES if config.cost else ()),
        "spo show --files lists all artefacts and models; spo report shows every response",
    ]
    print_results(*(Text(note, "yellow" if note in found.notes else "dim") for note in notes))
    return None


def _show_files(path: AnyPath, config: Config) -> None:
    entries = inventory(path)
    if not entries:
        raise UserError(f"{path} contains no artefact, model directory or run")
    if config.json:
        return print_line(json.dumps([entry.as_dict() for entry in entries], indent=2))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("path", "made by", "state"):
        table.add_column(name, overflow="fold")
    for name in ("rows", "reward"):
        table.add_column(name, justify="right")
    for entry in entries:
        state = Text(entry.state, "" if entry.problem is None else "yellow")
        rows, reward = (number(value) if value is not None else "" for value in (entry.rows, entry.reward))
        table.add_row(Text(entry.path), f"spo {entry.stage}" if entry.stage else "", state, rows, reward)
    problems = [Text(f"{entry.path}: {entry.problem}", "yellow") for entry in entries if entry.problem]
    print_results(_heading(str(path)), table, *problems)
    return None


def _print_json(path: AnyPath, stage: str, fingerprint: str, lineage: Any, figures: dict[str, Any]) -> None:
    values = {
        "path": str(path),
        "stage": stage,
        "fingerprint": fingerprint,
        "lineage": json.loads(lineage.to_json()) if lineage else None,
        "statistics": figures,
    }
    print_line(json.dumps(values, indent=2, ensure_ascii=False))


def _heading(text: str) -> Text:
    return Text.assemble("\n", (text, "bold underline"))


def _figures(figures: dict[str, Any]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in figures.items():
        table.add_row(Text(name.replace("_", " "), "cyan"), _figure(value))
    return table


def _figure(value: Any) -> Text:
    """Return one figure as text; a mean with its standard error as `0.41 ± 0.02`."""
    if isinstance(value, str):
        return Text(value)
    if not isinstance(value, dict):
        return Text(number(value) if math.isfinite(value) else "–")
    if value.keys() == {"mean", "standard_error"}:
        return Text(f"{number(value['mean'])} ± {number(value['standard_error'])}")
    text = Text()
    for name, one in value.items():
        text.append(f"{name} ", "dim").append(f"{number(one)}  ")
    return text
