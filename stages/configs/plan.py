"""Define the options of `spo plan`."""

from __future__ import annotations

from dataclasses import dataclass

from stages.configs import run
from stages.core.config import option, validate
from stages.core.errors import UserError
from stages.core.paths import AnyPath

CUTPOINT_SHARE = 0.15


@dataclass(frozen=True, kw_only=True)
class Config(run.Config):
    """The options of `spo plan`: those of `spo run`, and where its rates and lengths come from."""

    like: AnyPath | None = option(
        "Earlier run whose response lengths, cutpoints, rates and file sizes are used. A few iterations of the same "
        "recipe on the same machine predict best.",
        default=None,
        default_text="none",
        metavar="RUN",
        group="Assumptions",
        common=True,
    )
    response_tokens: int | None = option(
        "Tokens of a response.",
        default=None,
        default_text="from --like, else --max-tokens",
        minimum=1,
        group="Assumptions",
        common=True,
    )
    prompt_tokens: int | None = option(
        "Tokens of a prompt.", default=None, default_text="from --like, else 0", minimum=1, group="Assumptions"
    )
    cutpoint_share: float | None = option(
        "Share of the tokens that are cutpoints.",
        default=None,
        default_text=f"from --like, else {CUTPOINT_SHARE:g}",
        above=0,
        maximum=1,
        group="Assumptions",
    )
    sampling_rate: float | None = option(
        "Tokens that a sampler samples per second.",
        default=None,
        default_text="from --like, else unknown",
        above=0,
        group="Assumptions",
        common=True,
    )
    training_rate: float | None = option(
        "Tokens that a trainer processes per second.",
        default=None,
        default_text="from --like, else unknown",
        above=0,
        group="Assumptions",
        common=True,
    )
    json: bool = option("Print the figures as JSON.", default=False, group="View", common=True)

    def __post_init__(self) -> None:
        validate(self)
        if self.like is not None and (self.response_tokens or self.cutpoint_share):
            raise UserError(
                "--response-tokens and --cutpoint-share replace what --like measures: pass either, not both"
            )

    def unread(self) -> dict[str, str]:
        """Return the options that decide how a run reports."""
        return {"report_to": "`spo run`"}
