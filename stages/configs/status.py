"""Define the options of `spo status`."""

from __future__ import annotations

from dataclasses import dataclass

from stages.core.config import option, validate
from stages.core.paths import AnyPath


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options of `spo status`."""

    run: AnyPath = option("Directory of a run.", argument=True)
    json: bool = option("Print every part as JSON.", default=False, group="Output", common=True)

    def __post_init__(self) -> None:
        validate(self)
