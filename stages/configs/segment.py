"""Define the options of `spo segment`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from stages.configs.shared import OutputOptions
from stages.core.config import option, validate
from stages.core.errors import UserError, one_of
from stages.core.paths import AnyPath

PARTITIONS = ("cutpoints", "fixed", "count", "delimiter", "token", "trajectory", "branches", "tree")

_READ_BY = {
    "interval": "cutpoints",
    "segment_tokens": "fixed",
    "num_segments": "count",
    "delimiter": "delimiter",
    "tokenizer": "delimiter",
}
"""Option → the partition that reads it."""


@dataclass(frozen=True, kw_only=True)
class Config(OutputOptions):
    """The options of `spo segment`."""

    GROUP = "Segments"

    trajectories: AnyPath = option(
        "Artefact of `spo rollout`, or Parquet of another tool.", argument=True, result=False
    )
    partition: str | None = option(
        "Where to cut: cutpoints (before every --interval-th), fixed (every --segment-tokens), count (--num-segments "
        "equal segments), delimiter (after each match), token, trajectory, branches (where the responses to a question "
        "diverge), or your own package.module:function.",
        default=None,
        default_text="cutpoints; for trees, tree",
        common=True,
    )
    rho: float = option(
        "A token is a cutpoint if its probability is below this.", default=0.9, above=0, maximum=1, common=True
    )
    interval: int = option("With cutpoints: number of cutpoints per segment.", default=5, minimum=1, common=True)
    segment_tokens: int = option("With fixed: number of tokens per segment.", default=30, minimum=1, common=True)
    num_segments: int = option("With count: number of segments per trajectory.", default=3, minimum=1, common=True)
    delimiter: str = option(
        "With delimiter: regular expression whose matches end a segment.",
        default=r"\n",
        metavar="REGEX",
        common=True,
    )
    tokenizer: str | None = option(
        "With delimiter: model whose tokenizer decodes the tokens.",
        default=None,
        default_text="the sampling model",
        result=False,
        metavar="MODEL",
    )

    def unread(self) -> dict[str, str]:
        """Return the options that the partition does not read."""
        chosen = self.partition or "cutpoints"
        return {name: f"--partition {one}" for name, one in _READ_BY.items() if one != chosen}

    def __post_init__(self) -> None:
        validate(self)
        if self.partition is not None and self.partition not in PARTITIONS and ":" not in self.partition:
            choices = (*PARTITIONS, "package.module:function")
            raise UserError(f"--partition must be {one_of(choices, self.partition)}")
        try:
            re.compile(self.delimiter)
        except re.error as error:
            raise UserError(f"--delimiter must be a regular expression; got {self.delimiter!r} ({error})") from error
