"""Define the options of `spo prune`."""

from __future__ import annotations

from dataclasses import dataclass

from stages.configs import run


@dataclass(frozen=True, kw_only=True)
class Config(run.Config):
    """The options of `spo prune`: the same as those of `spo run`, so that a run is pruned as it was started."""

    def unread(self) -> dict[str, str]:
        """Return the options that decide how a run computes, not what it keeps."""
        return dict.fromkeys(("report_to", "executor", "address"), "`spo run`")
