"""Define the options of `spo eval`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stages.configs.choices import TaskChoice, pair_tasks
from stages.configs.execution import ExecutorOptions
from stages.configs.shared import (
    DATA_HELP,
    TASK_ARG_HELP,
    TASK_HELP,
    EngineOptions,
    OutputOptions,
    QuestionOptions,
    ReportOptions,
    SamplingOptions,
    Split,
)
from stages.core.config import option, validate
from stages.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Config(SamplingOptions, QuestionOptions, EngineOptions, ExecutorOptions, OutputOptions, ReportOptions):
    """The options of `spo eval`."""

    GROUP = "Sampling"

    task: tuple[str, ...] = option(TASK_HELP, group="Input")
    data: tuple[str, ...] = option(
        f"Data of the tasks: {DATA_HELP} TASK=PLACE applies to one task.",
        default=(),
        default_text="none, for tasks that need no data",
        result=False,
        group="Input",
        metavar="[TASK=]PLACE",
        common=True,
    )
    task_arg: tuple[str, ...] = option(
        f"Option of every task, or of one. {TASK_ARG_HELP}",
        default=(),
        group="Input",
        metavar="[TASK.]KEY=VALUE",
    )
    split: Split = option("Split of the questions.", default="test", group="Input", common=True)
    overlong_prompts: Literal["error", "skip"] = option(
        "What happens to a prompt that leaves no room for a response in the context: it ends the command before any "
        "work (error), or its question is left out of the results and counted (skip).",
        default="error",
        group="Prompt",
        result=False,
    )
    num_generations: int = option(
        "Responses per question: k of avg@k.", default=1, minimum=1, maximum=100_000, common=True
    )
    temperature: float = option("Sampling temperature; 0 is greedy.", default=0.0, minimum=0, common=True)
    max_tokens: tuple[int, ...] = option(
        "Token budgets: responses are sampled up to the largest and graded at each; a response that exceeds a budget "
        "scores 0 there.",
        default=(1024,),
        minimum=1,
        common=True,
    )

    def __post_init__(self) -> None:
        validate(self)
        _ = self.tasks  # raises if the tasks and their data do not match
        if not self.max_tokens:
            raise UserError("--max-tokens must name at least one budget")

    @property
    def tasks(self) -> tuple[TaskChoice, ...]:
        """Each task with its own data and options.

        Raises:
          UserError: no task, the same task twice, or two places of data for one task.
        """
        return pair_tasks(self.task, self.data, self.task_arg)
