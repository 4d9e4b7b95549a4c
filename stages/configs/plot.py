"""Define the options of `spo plot`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stages.configs.audit import FORMATS
from stages.core.config import option, validate
from stages.core.errors import UserError
from stages.core.paths import AnyPath

Axis = Literal["iteration", "sampled", "trained", "seconds"]
Figure = Literal["reward", "accuracy", "entropy", "kl", "length", "truncated", "clipped", "mask", "mismatch"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options of `spo plot`."""

    GROUP = "View"

    runs: tuple[str, ...] = option(
        "Runs to compare. Runs joined by commas are seeds of one method: one curve with a band.",
        argument=True,
        group="Input",
    )
    out: AnyPath = option(
        "Figure to write: a .png, .svg or .pdf file.", short="--output", group="Output", metavar="FILE"
    )
    x: tuple[Axis, ...] = option(
        "Horizontal axis: iterations, tokens sampled, tokens trained or seconds so far, evaluations left out. Each one "
        "is a panel.",
        default=("iteration",),
        common=True,
    )
    y: Figure = option("Figure to draw.", default="reward", common=True)
    label: tuple[str, ...] = option(
        "Label of each curve, in the order of the runs.", default=(), default_text="names of the runs", common=True
    )

    def __post_init__(self) -> None:
        validate(self)
        if self.out.suffix not in FORMATS:
            raise UserError(f"--out must end with {', '.join(FORMATS)}; got {self.out}")
        if self.label and len(self.label) != len(self.runs):
            raise UserError(f"--label: expected one per curve ({len(self.runs)}), got {len(self.label)}")
