"""Define the options of `spo show`."""

from __future__ import annotations

from dataclasses import dataclass

from stages.core.config import option, validate
from stages.core.errors import UserError
from stages.core.paths import AnyPath


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options of `spo show`."""

    GROUP = "View"

    path: AnyPath | None = option(
        "Artefact, part, model directory or run to show; optional with --schema.",
        default=None,
        default_text="none",
        argument=True,
        group="Input",
        common=True,
    )
    schema: bool = option(
        "Show the meaning of each column; without PATH, of the tables of all stages.", default=False, common=True
    )
    trajectory: str | None = option(
        "Show the trajectory with this id.", default=None, default_text="none", metavar="ID", common=True
    )
    row: int | None = option(
        "Show the trajectory of this row, counted from 0.",
        default=None,
        default_text="a row that spo picks",
        minimum=0,
        common=True,
    )
    tree: str | None = option(
        "Show the tree of the question with this id.", default=None, default_text="none", metavar="ID", common=True
    )
    trajectories: AnyPath | None = option(
        "Trajectories of the artefact.",
        default=None,
        default_text="the path in its lineage",
        group="Input",
        common=True,
    )
    depth: int = option("Number of generations to follow the lineage back.", default=5, minimum=0, common=True)
    json: bool = option("Print lineage and statistics as JSON.", default=False, group="Output", common=True)

    def unread(self) -> dict[str, str]:
        """Return the options of a view that another option excludes."""
        views = ("trajectory", "row", "tree", "depth")
        if self.schema:
            return dict.fromkeys((*views, "trajectories", "json"), "a view without --schema")
        return dict.fromkeys(views, "a view without --json") if self.json else {}

    def __post_init__(self) -> None:
        validate(self)
        if self.path is None and not self.schema:
            raise UserError("expected PATH (an artefact, a part, a model directory or a run), or --schema")
        if sum(choice is not None for choice in (self.trajectory, self.row, self.tree)) > 1:
            raise UserError("--trajectory, --row and --tree exclude each other: pass one of them")
