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
    files: bool = option("Of a run, list every artefact and model.", default=False, common=True)
    cost: bool = option(
        "Of a run, show the tokens and seconds of each stage of each iteration.",
        default=False,
        common=True,
    )
    where: tuple[str, ...] = option(
        "List the trajectories with this property: a column, =, !=, <, <=, >, >= or ~ (contains), and a value, e.g. "
        "'reward<1', 'tokens>50', 'text~therefore', and of advantages 'advantage<-0.5'. Several must hold together.",
        default=(),
        metavar="CONDITION",
        common=True,
    )
    question: str | None = option(
        "List the trajectories of the question with this id.",
        default=None,
        default_text="all",
        metavar="ID",
        common=True,
    )
    sample: int | None = option(
        "Draw this many of the trajectories token by token, chosen by a hash of their id.",
        default=None,
        default_text="none",
        minimum=1,
        metavar="N",
        common=True,
    )
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
        if self.selects and not (self.trajectory is self.row is self.tree is None):
            raise UserError("--where, --question and --sample select trajectories: omit --trajectory, --row and --tree")

    @property
    def selects(self) -> bool:
        """Whether an option selects trajectories."""
        return bool(self.where) or self.question is not None or self.sample is not None
