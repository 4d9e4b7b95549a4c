"""Define the options of `spo rollout`."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Literal

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

# Defaults of --num-generations, --segment-tokens, --rho, and of --num-trees with --tree-budget.
GENERATIONS, SEGMENT_TOKENS, RHO, FIRST_RESPONSES = 8, 30, 0.9, 2


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
    tree_budget: int | None = option(
        "Sample a tree per question of about this many tokens, in place of a shape: each branch leaves the state with "
        "the widest Wilson interval of its value, after a multiple of --segment-tokens or as --branch-at says.",
        default=None,
        default_text="off",
        added=True,
        minimum=1,
        metavar="TOKENS",
    )
    segment_tokens: int | None = option(
        "With --tree: tokens between two levels.",
        default=None,
        default_text=str(SEGMENT_TOKENS),
        minimum=1,
        common=True,
    )
    branch_at: Literal["entropy", "surprisal", "cutpoints"] | None = option(
        "With --tree: grow it from whole responses, which branch again at the tokens of the largest entropy, of the "
        "largest surprisal, or at evenly spread cutpoints. With --tree-budget: branch at any token, the largest "
        "entropy or surprisal first, or at cutpoints.",
        default=None,
        added=True,
        default_text="after every --segment-tokens",
    )
    rho: float | None = option(
        "With --branch-at cutpoints: a token is a cutpoint if its probability is below this.",
        default=None,
        added=True,
        default_text=f"{RHO:g}",
        above=0,
        maximum=1,
    )
    num_trees: int | None = option(
        "With --tree: trees per question. They share the prompt, so 4 trees 1-3-3 are one tree 4-3-3. With "
        "--tree-budget: responses that a tree begins with.",
        default=None,
        added=True,
        default_text=f"1, or {FIRST_RESPONSES} with --tree-budget",
        minimum=1,
        maximum=100_000,
    )
    refill: int | None = option(
        "Replace a question whose responses have equal rewards by the question --num-questions further on, at most "
        "this often; a place without any question that has a signal stays empty.",
        default=None,
        added=True,
        default_text="off",
        minimum=1,
        maximum=1000,
    )
    unfinished_reward: float = option("Reward of a response that reaches --max-tokens without ending.", default=0.0)
    overlong_buffer: int | None = option(
        "Lower the reward of a response that ends in this many tokens before --max-tokens: from 0 to "
        "--overlong-penalty at the maximum.",
        default=None,
        added=True,
        default_text="off",
        minimum=1,
    )
    overlong_penalty: float = option(
        "With --overlong-buffer: what a response of --max-tokens tokens loses.", default=1.0, added=True, minimum=0
    )
    max_tokens: int = option("Maximum length of a response, in tokens.", default=1024, minimum=1, common=True)
    token_texts: bool = option(
        "Also write the text of each token, in the column token_texts, for programs that read the table.",
        default=False,
        added=True,
    )
    staleness: int | None = option(
        "Iterations of training between --model and the policy that will learn from the samples; written in the "
        "column staleness. If it is not 0, spo train corrects the loss for the difference.",
        default=None,
        added=True,
        default_text="0, and no column",
        minimum=0,
    )

    def __post_init__(self) -> None:
        validate(self)
        if not self.in_trees:
            for name in ("segment_tokens", "branch_at", "num_trees"):
                if getattr(self, name) is not None:
                    raise UserError(
                        f"--{name.replace('_', '-')} requires --tree or --tree-budget: pass one of them, or omit it"
                    )
        self._check_branching()
        self._check_budget()
        if self.overlong_buffer is None and self.overlong_penalty != 1.0:
            raise UserError("--overlong-penalty requires --overlong-buffer: pass both, or neither")
        if self.overlong_buffer is not None and self.overlong_buffer > self.max_tokens:
            raise UserError(
                f"--overlong-buffer must be at most --max-tokens, {self.max_tokens}; got {self.overlong_buffer}"
            )
        if self.refill is not None and self.num_questions is None:
            raise UserError("--refill takes the questions after the first --num-questions: pass both, or neither")
        if self.tree is None:
            return
        if self.num_generations is not None:
            raise UserError("--tree determines the number of responses: omit --num-generations")
        if not re.fullmatch(r"[1-9]\d{0,5}(-[1-9]\d{0,5})*", self.tree):
            raise UserError(
                "--tree must hold the branches of each level, each at least 1, joined by dashes, such as 6-6-6; "
                f"got {self.tree!r}"
            )

    def _check_branching(self) -> None:
        """Check the options that say where a tree branches."""
        if self.branch_at and self.segment_tokens is not None:
            raise UserError(f"--branch-at {self.branch_at} determines where trees branch: omit --segment-tokens")
        if self.branch_at != "cutpoints" and self.rho is not None:
            raise UserError("--rho defines the cutpoints of --branch-at cutpoints: pass both, or neither")
        if self.branch_at == "entropy" and self.engine == "vllm":
            raise UserError("vLLM reports no entropies: pass --branch-at surprisal, or --engine transformers")

    def _check_budget(self) -> None:
        """Check the options that --tree-budget does not fit."""
        if self.tree_budget is None:
            return
        for name in ("tree", "num_generations"):
            if getattr(self, name) is not None:
                raise UserError(f"--tree-budget determines the tree: omit --{name.replace('_', '-')}")
        if self.tree_budget < (least := self.num_trees or FIRST_RESPONSES):
            raise UserError(
                f"--tree-budget {self.tree_budget} is less than one token for each of the {least} responses that a "
                "tree begins with: raise it, or lower --num-trees"
            )
        if self.overlong_buffer is not None or not 0 <= self.unfinished_reward <= 1:
            name = "unfinished-reward" if self.overlong_buffer is None else "overlong-buffer"
            raise UserError(
                f"--tree-budget compares Wilson intervals, which need rewards from 0 to 1: omit --{name}, or pass a "
                "shape with --tree"
            )

    @property
    def in_trees(self) -> bool:
        """Whether the responses to a question form a tree."""
        return self.tree is not None or self.tree_budget is not None

    @property
    def optional_columns(self) -> dict[str, bool]:
        """The columns that only some trajectories have, and whether these have them."""
        return {"token_texts": self.token_texts, "staleness": self.staleness is not None}

    @property
    def branches(self) -> tuple[int, ...] | None:
        """Branches at each level of a question's trees, which share the prompt; None if no shape is given."""
        if self.tree is None:
            return None
        first, *others = parse_branches(self.tree)
        return (first * (self.num_trees or 1), *others)

    def resolved(self) -> Config:
        """Return the configuration with its defaults resolved; the fingerprint covers only options of the mode in use.

        A tree has no --num-generations, and independent responses have no --segment-tokens. Several trees are one.
        """
        if not self.in_trees:
            return dataclasses.replace(self, num_generations=self.responses_per_question)
        if self.branches is None:
            tree = dataclasses.replace(self, num_trees=self.num_trees or FIRST_RESPONSES)
        else:
            tree = dataclasses.replace(self, tree="-".join(map(str, self.branches)), num_trees=None)
        if self.branch_at == "cutpoints":
            return dataclasses.replace(tree, rho=RHO if self.rho is None else self.rho)
        if self.branch_at:
            return tree
        return dataclasses.replace(tree, segment_tokens=self.segment_tokens or SEGMENT_TOKENS)

    @property
    def responses_per_question(self) -> int:
        """Responses per question; in trees, the maximum number of leaves."""
        if self.tree_budget is not None:
            return self.tree_budget
        if not self.branches:
            return self.num_generations or GENERATIONS
        if self.branch_at:
            return self.branches[0] * (1 + sum(count - 1 for count in self.branches[1:]))
        return math.prod(self.branches)
