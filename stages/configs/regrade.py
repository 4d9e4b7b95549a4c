"""Define the options of `spo eval --regrade`."""

from __future__ import annotations

from dataclasses import dataclass

from stages.configs.shared import OutputOptions
from stages.core.config import option, validate
from stages.core.errors import UserError
from stages.core.paths import AnyPath


@dataclass(frozen=True, kw_only=True)
class Config(OutputOptions):
    """The options of `spo eval --regrade`."""

    GROUP = "Input"

    regrade: AnyPath = option("Evaluation whose responses are graded again.", result=False)
    task: tuple[str, ...] = option(
        "Task of responses that another tool made.", default=(), default_text="as recorded with the responses"
    )
    task_arg: tuple[str, ...] | None = option(
        "Option of every task, or of one.",
        default=None,
        default_text="as recorded with the responses",
        metavar="[TASK.]KEY=VALUE",
        common=True,
    )
    max_tokens: tuple[int, ...] | None = option(
        "Token budgets to cut the responses off at.",
        default=None,
        default_text="those of the evaluation",
        minimum=1,
        common=True,
    )
    tokenizer: str | None = option(
        "Model whose tokenizer decodes responses that --max-tokens cuts off.",
        default=None,
        default_text="the model that sampled them",
        result=False,
        metavar="MODEL",
    )

    def __post_init__(self) -> None:
        validate(self)
        if self.out.resolve() == self.regrade.resolve():
            raise UserError(f"--out must differ from --regrade, which is kept unchanged; got {self.out} for both")
