"""Define the options of `spo audit`."""

from __future__ import annotations

from dataclasses import dataclass

from stages.configs.execution import ExecutorOptions
from stages.configs.shared import EngineOptions
from stages.core.config import option, validate
from stages.core.errors import UserError
from stages.core.paths import AnyPath

FORMATS = (".png", ".svg", ".pdf")
"""Formats of figures, by the end of the file name."""


@dataclass(frozen=True, kw_only=True)
class Config(EngineOptions, ExecutorOptions):
    """The options of `spo audit`."""

    GROUP = "Sampling"

    advantages: AnyPath = option("Advantages to audit.", argument=True, group="Input")
    out: AnyPath | None = option(
        "Directory for the reference rollouts and audit.json.",
        default=None,
        default_text="audit beside the advantages",
        short="--output-dir",
        group="Output",
        common=True,
    )
    trajectories: int = option(
        "Number of responses whose states are sampled from, chosen by a hash of their id.",
        default=32,
        minimum=1,
        common=True,
    )
    rollouts: int = option(
        "Rollouts per state whose mean is the reference value; 64 more are the estimates of N = 1 to 64.",
        default=256,
        minimum=2,
        maximum=100_000,
        common=True,
    )
    gradients: int = option(
        "Of these responses, the number whose policy gradients are compared under the advantages of GRPO, SPO-chain "
        "and SPO-tree; 0: none.",
        default=32,
        minimum=0,
        common=True,
    )
    seed: int = option("Seed of the rollouts; they always differ from those of spo estimate.", default=0, minimum=0)
    figure: AnyPath | None = option(
        "Also draw the calibration, the error against N and the mask as a figure: a .png, .svg or .pdf file.",
        default=None,
        default_text="none",
        metavar="FILE",
        group="Output",
        common=True,
    )
    model: str | None = option(
        "Policy that sampled the trajectories.",
        default=None,
        default_text="as recorded with the trajectories",
        short="-m",
        group="Input",
        metavar="MODEL",
    )
    json: bool = option("Print the figures as JSON.", default=False, group="Output", common=True)
    overwrite: bool = option("Replace reference rollouts of another audit.", default=False, group="Output")

    def __post_init__(self) -> None:
        validate(self)
        if self.figure is not None and self.figure.suffix not in FORMATS:
            raise UserError(f"--figure must end with {', '.join(FORMATS)}; got {self.figure}")
