"""Define the options of `spo grade`."""

from __future__ import annotations

from dataclasses import dataclass

from stages.configs.shared import TASK_ARG_HELP, TASK_HELP
from stages.core.config import option, validate
from stages.core.errors import UserError
from stages.core.paths import AnyPath


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options of `spo grade`."""

    GROUP = "Input"

    responses: AnyPath = option(
        "Responses and reference answers: a JSONL, JSON, CSV or Parquet file, trajectories, or an evaluation.",
        argument=True,
    )
    task: str | None = option(
        f"{TASK_HELP} The rewards are those of this task.",
        default=None,
        default_text="as recorded with the responses, else custom",
        common=True,
    )
    task_arg: tuple[str, ...] | None = option(
        f"Option of the task. {TASK_ARG_HELP}",
        default=None,
        default_text="as recorded with the responses",
        metavar="KEY=VALUE",
        common=True,
    )
    grader: str | None = option(
        "Grader (maths, number, exact), short for --task-arg grader=NAME.",
        default=None,
        default_text="the task's own",
        metavar="NAME",
        common=True,
    )
    response_column: str | None = option(
        "Column of the responses.",
        default=None,
        default_text="text, response, completion, output, prediction, generated_text or resps",
        metavar="COLUMN",
        common=True,
    )
    answer_column: str | None = option(
        "Column of the reference answers, short for --task-arg answer=COLUMN.",
        default=None,
        default_text="answer, final_answer, reference, reward_model.ground_truth, ground_truth or target",
        metavar="COLUMN",
        common=True,
    )
    rows: int = option("Number of rows to show, the suspicious ones first.", default=20, minimum=0, group="Output")
    explain: bool = option("Show the steps that led to each verdict.", default=False, group="Output", common=True)
    out: AnyPath | None = option(
        "Parquet file to write: a row per response with reward, verdict, reason, place and steps.",
        default=None,
        default_text="none",
        group="Output",
        common=True,
    )
    json: bool = option("Print every row as JSON.", default=False, group="Output", common=True)

    def unread(self) -> dict[str, str]:
        """Return the options that --json, which prints every row, excludes."""
        return {"rows": "a view without --json"} if self.json else {}

    def __post_init__(self) -> None:
        validate(self)
        given = {arg.partition("=")[0] for arg in self.task_arg or ()}
        for name, value in (("grader", self.grader), ("answer", self.answer_column)):
            if value is not None and name in given:
                flag = "--grader" if name == "grader" else "--answer-column"
                raise UserError(f"{flag} and --task-arg {name} say the same: pass one of them")
        if self.out is not None and not str(self.out).endswith(".parquet"):
            raise UserError(f"--out must be a file that ends in .parquet; got {self.out}")
