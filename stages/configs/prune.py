"""Define the options of `spo prune`."""

from __future__ import annotations

from dataclasses import dataclass

from stages.configs import run


@dataclass(frozen=True, kw_only=True)
class Config(run.Config):
    """The options of `spo prune`: the same as those of `spo run`."""
