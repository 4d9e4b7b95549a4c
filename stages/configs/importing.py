"""Define the options of `spo import`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stages.configs.shared import TASK_ARG_HELP, TASK_HELP, device_option, threads_option
from stages.core.config import option, validate
from stages.core.errors import UserError, did_you_mean
from stages.core.paths import AnyPath

ROLES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "input", "arguments.gen_args_0.arg_0", "question"),
    "completion": ("completion", "output", "response", "resps", "text"),
    "reward": ("reward", "score", "exact_match", "acc"),
    "reference": ("reference", "gts", "target", "ground_truth", "reward_model.ground_truth", "answer"),
    "question_id": ("question_id", "doc_id", "uid", "custom_id", "unique_id"),
    "finish_reason": ("finish_reason",),
    "prompt_token_ids": ("prompt_token_ids", "prompt_ids"),
    "token_ids": ("token_ids", "completion_ids", "response_ids"),
}
"""Role of a column → the names that verl, TRL, lm-eval and others give it; the first one that exists is used."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options of `spo import`."""

    GROUP = "Input"

    responses: AnyPath = option(
        "Responses with their prompts and rewards: JSONL, JSON, CSV or Parquet.", argument=True, result=False
    )
    model: str = option(
        "Model that sampled them: its tokenizer reads the texts, and it scores the tokens.",
        result=False,
        metavar="MODEL",
        short="-m",
    )
    column: tuple[str, ...] = option(
        f"Column of a role: {', '.join(ROLES)}.",
        default=(),
        default_text="the names of verl, TRL, lm-eval and others",
        metavar="ROLE=COLUMN",
        common=True,
    )
    temperature: float = option(
        "Temperature at which they were sampled; log-probabilities are scored at it.",
        default=1.0,
        above=0,
        group="Sampling",
        common=True,
    )
    max_tokens: int | None = option(
        "Limit at which they were sampled; a response of that many tokens without finish_reason counts as truncated.",
        default=None,
        default_text="the longest response; none is truncated",
        minimum=1,
        group="Sampling",
        common=True,
    )
    task: str | None = option(
        f"{TASK_HELP} Recorded for `spo estimate`, which grades rollouts with it.",
        default=None,
        default_text="none",
        common=True,
    )
    task_arg: tuple[str, ...] = option(f"Option of the task. {TASK_ARG_HELP}", default=(), metavar="KEY=VALUE")
    dtype: Literal["auto", "float32", "bfloat16"] = option(
        "Number format of matrix products. auto is bfloat16 if the device supports it.", default="auto", group="Engine"
    )
    device: str = device_option()
    threads: int | None = threads_option()
    per_device_batch_size: int = option(
        "Responses per forward pass.", default=8, minimum=1, result=False, group="Engine"
    )
    out: AnyPath = option("Directory of the trajectories to write.", result=False, group="Output", short="--output-dir")
    overwrite: bool = option(
        "Replace trajectories that were made otherwise.", default=False, result=False, group="Output", common=True
    )

    def __post_init__(self) -> None:
        validate(self)
        for entry in self.column:
            role, _, name = entry.partition("=")
            if role not in ROLES or not name:
                raise UserError(
                    f"--column must be ROLE=COLUMN with a role of {', '.join(ROLES)}; got {entry!r}."
                    f"{did_you_mean(role, ROLES)}"
                )

    @property
    def columns(self) -> dict[str, str]:
        """Role → column, as given."""
        return {role: name for role, _, name in (entry.partition("=") for entry in self.column)}
