"""Define the options of `spo doctor`."""

from __future__ import annotations

from dataclasses import dataclass

from stages.core.config import option, validate


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options of `spo doctor`."""

    model: str | None = option(
        "Also probe the shapes of this model: a directory in Hugging Face format. Its weights are not loaded.",
        default=None,
        default_text="the quickstart's model alone",
        group="Input",
        metavar="MODEL",
        short="-m",
        common=True,
    )
    json: bool = option("Print the report as JSON.", default=False, group="Output", common=True)

    def __post_init__(self) -> None:
        validate(self)
