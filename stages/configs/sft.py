"""Define the options of `spo sft`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stages.configs.shared import QuestionOptions, ReportOptions, TaskOptions, TrainingOptions
from stages.core.config import option, validate
from stages.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Config(TrainingOptions, TaskOptions, QuestionOptions, ReportOptions):
    """The options of `spo sft`."""

    GROUP = "Optimization"

    model: str | None = option(
        "Model to start from: a directory in Hugging Face format, or a name on the hub; required without --preset.",
        default=None,
        default_text="none",
        result=False,
        short="-m",
        group="Input",
        metavar="MODEL",
        common=True,
    )
    preset: Literal["tiny", "small"] | None = option(
        "Start from scratch with a Qwen2 model over bytes: tiny (0.1 million parameters, enough for arithmetic) or "
        "small (4 million).",
        default=None,
        default_text="none",
        group="Input",
        common=True,
    )
    num_examples: int | None = option(
        "Number of worked solutions to train on.",
        default=None,
        default_text="as many as --steps needs, else all of the split",
        minimum=1,
        group="Input",
    )
    eval_examples: int = option(
        "Number of worked solutions, the last ones, that are held out: their loss is measured, not trained on.",
        default=0,
        default_text="0, none",
        minimum=0,
        added=True,
        group="Input",
    )
    eval_steps: int | None = option(
        "Steps between two measurements of the loss of the held-out solutions.",
        default=None,
        default_text="once an epoch, and after the last step",
        minimum=1,
        result=False,
        group="Optimization",
    )
    epochs: float = option("Passes over the examples.", default=1.0, above=0, common=True)
    steps: int | None = option(
        "Number of optimizer steps.", default=None, default_text="given by --epochs", minimum=1, common=True
    )
    per_device_batch_size: int = option("Examples per forward pass.", default=32, minimum=1, result=False, common=True)
    gradient_accumulation_steps: int = option(
        "Forward passes per optimizer step.", default=1, minimum=1, result=False, common=True
    )
    learning_rate: float | None = option(
        "Peak learning rate.", default=None, default_text="3e-3 with --preset, 1e-5 with --model", above=0, common=True
    )
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = option(
        "Schedule of the learning rate after the warm-up.", default="cosine"
    )
    warmup_ratio: float = option("Share of the steps that warm up, from 0 to 1.", default=0.05, minimum=0, maximum=1)
    adam_beta2: float = option("Decay rate of Adam's second moment.", default=0.98, minimum=0, below=1)
    seed: int = option(
        "Seed of new weights (--preset), of a new adapter, and of the order of the examples.", default=0, common=True
    )

    def __post_init__(self) -> None:
        validate(self)
        if (self.model is None) == (self.preset is None):
            raise UserError("expected either --model, to start from a model, or --preset, to start from scratch")
        if self.eval_steps and not self.eval_examples:
            raise UserError("--eval-steps requires --eval-examples: pass both, or neither")

    @property
    def batch_size(self) -> int:
        """Examples per optimizer step."""
        return self.per_device_batch_size * self.gradient_accumulation_steps

    @property
    def peak_learning_rate(self) -> float:
        """Peak learning rate; the default depends on --preset, because new weights take larger steps."""
        return self.learning_rate or (3e-3 if self.preset else 1e-5)
