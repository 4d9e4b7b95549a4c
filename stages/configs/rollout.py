"""Define the options of `spo rollout`."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass

from stages.configs.execution import ExecutorOptions
from stages.configs.shared import (
    EngineOptions,
    OutputOptions,
    QuestionOptions,
    SamplingOptions,
    SignalOptions,
    TaskOptions,
)
from stages.core.config import option, validate
from stages.core.errors import UserError

GENERATIONS, SEGMENT_TOKENS = 8, 30  # defaults of --num-generations and --segment-tokens


def parse_branches(tree: str) -> tuple[int, ...]:
    """Return the branches per node at each level of a tree: `6-6-6` → (6, 6, 6)."""
    return tuple(map(int, tree.split("-")))


@dataclass(frozen=True, kw_only=True)
class Config(
    SamplingOptions, TaskOptions, QuestionOptions, EngineOptions, ExecutorOptions, OutputOptions, SignalOptions
):
    """The options of `spo rollout`."""

    GROUP = "Sampling"

    num_generations: int | None = option(
        "Responses per question; not with --tree.",
        default=None,
        default_text=str(GENERATIONS),
        minimum=1,
        maximum=100_000,
        common=True,
    )
    tree: str | None = option(
        "Sample a tree per question, with these branches at each level, e.g. 6-6-6: responses branch after every "
        "--segment-tokens, and the last level runs to the end.",
        default=None,
        default_text="independent responses",
        metavar="N-N-N",
        common=True,
        record=parse_branches,
    )
    segment_tokens: int | None = option(
        "With --tree: tokens between two levels.",
        default=None,
        default_text=str(SEGMENT_TOKENS),
        minimum=1,
        common=True,
    )
    unfinished_reward: float = option("Reward of a response that reaches --max-tokens without ending.", default=0.0)
    max_tokens: int = option("Maximum length of a response, in tokens.", default=1024, minimum=1, common=True)

    def __post_init__(self) -> None:
        validate(self)
        if self.tree is None:
            if self.segment_tokens is not None:
                raise UserError("--segment-tokens requires --tree: pass both, or neither")
            return
        if self.num_generations is not None:
            raise UserError("--tree determines the number of responses: omit --num-generations")
        if not re.fullmatch(r"[1-9]\d{0,5}(-[1-9]\d{0,5})*", self.tree):
            raise UserError(
                "--tree must hold the branches of each level, each at least 1, joined by dashes, such as 6-6-6; "
                f"got {self.tree!r}"
            )

    @property
    def branches(self) -> tuple[int, ...] | None:
        """Branches per node at each level of a tree; None for independent responses."""
        return None if self.tree is None else parse_branches(self.tree)

    def resolved(self) -> Config:
        """Return the configuration with its defaults resolved; the fingerprint covers only options of the mode in use.

        A tree has no --num-generations, and independent responses have no --segment-tokens.
        """
        if self.tree is None:
            return dataclasses.replace(self, num_generations=self.responses_per_question)
        return dataclasses.replace(self, segment_tokens=self.segment_tokens or SEGMENT_TOKENS)

    @property
    def responses_per_question(self) -> int:
        """Responses per question; with --tree, the maximum number of leaves."""
        return math.prod(self.branches) if self.branches else self.num_generations or GENERATIONS
