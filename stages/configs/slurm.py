"""Define the options of `spo slurm`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from stages.configs import run
from stages.core.config import option
from stages.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Config(run.Config):
    """The options of `spo slurm`."""

    GROUP = "Submission"

    submit: bool = option("Submit the jobs, as RUN/_slurm/submit.sh does.", default=False, common=True)
    dry_run: bool = option("Print the scripts; write and submit nothing.", default=False, common=True)
    only_missing: bool = option(
        "Submit only failed and missing tasks, and the jobs that wait for them.", default=False, common=True
    )
    only_iterations: str | None = option(
        "Submit only the jobs of these iterations, for a cluster that limits the number of jobs.",
        default=None,
        default_text="all iterations",
        metavar="FIRST-LAST",
        common=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.submit and self.dry_run:
            raise UserError("--dry-run and --submit exclude each other: omit one of them")
        if self.only_iterations and not re.fullmatch(r"\d+-\d+", self.only_iterations):
            raise UserError(f"--only-iterations must be FIRST-LAST, such as 0-9; got {self.only_iterations!r}")

    def includes(self, iteration: str) -> bool:
        """Return whether --only-iterations selects an iteration; the start belongs to iteration 0."""
        if self.only_iterations is None:
            return True
        first, last = map(int, self.only_iterations.split("-"))
        return first <= (0 if iteration == "start" else int(iteration)) <= last
