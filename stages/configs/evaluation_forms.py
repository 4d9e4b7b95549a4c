"""Define the options of the four forms of `spo eval`: sample and grade, regrade, compare two, tabulate several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stages.configs import evaluate, regrade
from stages.core.config import option, validate
from stages.core.errors import UserError
from stages.core.paths import AnyPath

Format = Literal["rich", "markdown", "latex", "json"]

NOTE = (
    "Other forms, each with its own --help: --compare A B pairs two evaluations by question; --regrade PATH grades "
    "saved responses again, without sampling; --table PATH... shows one evaluation, or several side by side."
)


@dataclass(frozen=True, kw_only=True)
class FormatOptions:
    """Format of the printed results."""

    GROUP = "Output"

    format: Format = option("Format of the printed results.", default="rich", result=False, common=True)


@dataclass(frozen=True, kw_only=True)
class Config(evaluate.Config, FormatOptions):
    """The options of `spo eval`."""


@dataclass(frozen=True, kw_only=True)
class Regrade(regrade.Config, FormatOptions):
    """Grade the saved responses of an evaluation again, without sampling."""


@dataclass(frozen=True, kw_only=True)
class Compare(FormatOptions):
    """Compare two evaluations, paired by question."""

    compare: tuple[AnyPath, ...] = option("Two evaluations, A and B: B is compared with A.", metavar="PATH")

    def __post_init__(self) -> None:
        validate(self)
        if len(self.compare) != 2:
            raise UserError(f"--compare takes two evaluations; got {len(self.compare)}")


@dataclass(frozen=True, kw_only=True)
class Results(FormatOptions):
    """Show one evaluation, or several side by side."""

    table: tuple[str, ...] = option("Evaluations to show, each under its name.", metavar="[NAME=]PATH")

    def __post_init__(self) -> None:
        validate(self)
        if not self.table:
            raise UserError("--table takes one or more evaluations")


FORMS: dict[str, type] = {"--regrade": Regrade, "--compare": Compare, "--table": Results}
"""Flag that selects another form of the command → the Config of that form, whose docstring is its help."""
