"""Define the options of `spo run`, and the tables of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stages.configs import estimate, evaluate, rollout, segment, sft, train
from stages.configs.execution import Cluster, Executor
from stages.configs.resources import ArrayResources, RankResources, Resources
from stages.configs.shared import ReportOptions
from stages.core.config import option, validate
from stages.core.errors import UserError
from stages.core.paths import AnyPath

_FROM_RECIPE = "from [run] of the recipe"


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options of `spo run`."""

    GROUP = "Recipe"

    recipe: AnyPath = option(
        "TOML file with the tables run, sft, rollout, segment, estimate, train, eval, ray and slurm.", argument=True
    )
    out: AnyPath | None = option(
        "Directory of the run.",
        default=None,
        default_text=_FROM_RECIPE,
        short="--output-dir",
        group="Output",
        common=True,
    )
    iterations: int | None = option(
        "Number of iterations.", default=None, default_text=_FROM_RECIPE, minimum=0, common=True
    )
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = option(
        "Also report the metrics of all stages, as one run, to TensorBoard or Weights & Biases.",
        default=(),
        default_text=_FROM_RECIPE,
        group="Output",
        common=True,
    )
    keep_checkpoints: int | None = option(
        "Number of latest iterations whose checkpoints are kept whole.",
        default=None,
        default_text=_FROM_RECIPE,
        minimum=1,
        group="Output",
        common=True,
    )
    executor: Executor | None = option(
        "Run models in this process (local), or on workers that Ray starts (ray), as the table [ray] says.",
        default=None,
        default_text=f"{_FROM_RECIPE}, else local",
        group="Executor",
        common=True,
    )
    overlap: int | None = option(
        "Iterations that sampling is ahead of training: with 1, rollouts are sampled with the weights before the last "
        "update, while that update is computed where samplers have their own GPUs.",
        default=None,
        default_text=f"{_FROM_RECIPE}, else 0",
        minimum=0,
        maximum=1,
        group="Executor",
    )
    address: str | None = option(
        "With --executor ray: address of a running Ray, as HOST:PORT or auto.",
        default=None,
        default_text="from [ray] of the recipe, else a local Ray cluster",
        group="Executor",
        common=True,
    )
    overrides: tuple[str, ...] = option(
        "Value that replaces the one in the recipe; --train.learning-rate 1e-5 does the same.",
        default=(),
        short="--set",
        metavar="TABLE.KEY=VALUE",
        common=True,
    )
    unset: tuple[str, ...] = option(
        "Table or key of the recipe to leave out, such as eval or train.warmup_ratio.",
        default=(),
        default_text="none",
        metavar="TABLE[.KEY]",
    )

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True, kw_only=True)
class RunTable(ReportOptions):
    """The options of the table [run] of a recipe. It also takes any option of a stage, for all stages that have it."""

    out: AnyPath = option("Directory of the run.")
    iterations: int = option("Number of iterations.", minimum=0)
    model: str | None = option("Model to start from if there is no table [sft].", default=None, default_text="none")
    eval_every: int = option("Iterations between evaluations; 0: at the start and the end only.", default=0, minimum=0)
    keep_checkpoints: int | None = option(
        "Number of latest iterations whose checkpoints are kept whole; older ones lose the optimizer state, and their "
        "weights as soon as replay no longer needs them.",
        default=None,
        default_text="all are kept",
        minimum=1,
    )
    executor: Executor = option(
        "Run models in this process (local), or on workers that Ray starts (ray), as the table [ray] says.",
        default="local",
    )
    overlap: int = option(
        "Iterations that sampling is ahead of training: with 1, rollouts are sampled with the weights before the last "
        "update, while that update is computed where samplers have their own GPUs.",
        default=0,
        minimum=0,
        maximum=1,
    )
    keep_every: int | None = option(
        "Keep the weights of every N-th older checkpoint.", default=None, default_text="none", minimum=1
    )

    def __post_init__(self) -> None:
        validate(self)
        if self.keep_every and not self.keep_checkpoints:
            raise UserError("keep_every excepts checkpoints from the pruning by keep_checkpoints: set both, or neither")


TABLES: dict[str, type] = {
    "run": RunTable,
    "sft": sft.Config,
    "rollout": rollout.Config,
    "segment": segment.Config,
    "estimate": estimate.Config,
    "train": train.Config,
    "eval": evaluate.Config,
}
"""Table of a recipe → the Config that defines its options."""

SLURM_TABLES: dict[str, type] = {
    "slurm": ArrayResources,
    "slurm.sft": Resources,
    "slurm.rollout": ArrayResources,
    "slurm.segment": ArrayResources,
    "slurm.estimate": ArrayResources,
    "slurm.train": RankResources,
    "slurm.eval": ArrayResources,
}
"""Tables that only `spo slurm` reads → the class that defines their options."""

SEPARATE_TABLES: dict[str, type] = {"ray": Cluster, **SLURM_TABLES}
"""Tables that are not stages and take no option from [run] → the class that defines their options."""
