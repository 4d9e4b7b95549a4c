"""Define the options of `spo report`."""

from __future__ import annotations

from dataclasses import dataclass

from stages.core.config import option, validate
from stages.core.errors import UserError
from stages.core.paths import AnyPath


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options of `spo report`."""

    GROUP = "Output"

    paths: tuple[AnyPath, ...] = option(
        "Runs, iterations, artefacts or parts to show, side by side.", argument=True, group="Input"
    )
    out: AnyPath | None = option(
        "HTML file to write.",
        default=None,
        default_text="report.html in the first path; _report.html in an artefact",
        common=True,
    )
    json: bool = option("Also write the content as JSON, beside the HTML file.", default=False, common=True)
    max_trajectories: int = option(
        "Most responses (or nodes of trees) in the file. If there are more, all responses to some questions are "
        "shown, the same questions in every iteration.",
        default=5000,
        minimum=1,
        common=True,
    )
    max_megabytes: float = option(
        "Approximate limit of the file's size; fewer questions are shown if responses are long.",
        default=15.0,
        above=0,
        common=True,
    )
    overwrite: bool = option("Replace an existing report.", default=False, common=True)

    def __post_init__(self) -> None:
        validate(self)
        if self.out is not None and self.out.suffix != ".html":
            raise UserError(f"--out must name an HTML file, such as report.html; got {self.out}")
