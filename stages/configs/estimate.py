"""Define the options of `spo estimate`, and which estimator reads which of them.

An option that the chosen estimator does not read is an error (`check_estimator_options`). The sampling options default
to the values recorded with the trajectories; only `monte-carlo` reads them.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from stages.configs.execution import ExecutorOptions
from stages.configs.shared import SAMPLED, EngineOptions, OutputOptions, SignalOptions
from stages.core.config import flag, option, validate
from stages.core.errors import UserError
from stages.core.paths import AnyPath

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

EstimatorName = Literal[
    "monte-carlo", "tree", "grpo", "rloo", "dr-grpo", "restem", "pairs", "prefix-tree", "tempo", "critic", "forward"
]
# Defaults of --rollouts, --interval-width, --confidence and --prior-weight.
ROLLOUTS, INTERVAL_WIDTH, CONFIDENCE, PRIOR_WEIGHT = 9, 0.2, 0.95, 4.0
ANSWER = "{answer}"
"""The placeholder of the reference answer in --answer-template."""
RECORDED = "as recorded with the trajectories"
ROLLOUTS_NAME = "rollouts"
"""Name of the directory of kept rollouts, beside the advantages."""
T = TypeVar("T", bound="DataclassInstance")
_GROUP: tuple[EstimatorName, ...] = ("grpo", "rloo", "dr-grpo")
_ROLLING: tuple[EstimatorName, ...] = ("monte-carlo", "forward")

READ_BY: dict[str, tuple[EstimatorName, ...]] = {
    "rollouts": _ROLLING,
    "interval_width": ("monte-carlo",),
    "confidence": ("monte-carlo",),
    "budget": ("monte-carlo",),
    "keep_rollouts": ("monte-carlo",),
    "baseline": ("tree", "prefix-tree"),
    "normalize_by": ("tree",),
    "credit": ("tree",),
    "node_value": ("tree",),
    "keep_zero": ("tree", "prefix-tree", "tempo"),
    "reward_threshold": ("restem", "pairs"),
    "max_responses": ("restem",),
    "max_pairs": ("pairs",),
    "critic": ("critic",),
    "gae_lambda": ("critic",),
    "gamma": ("critic",),
    "prior_weight": ("forward",),
    "answer_template": ("forward",),
    "best_of": ("monte-carlo", "tree", *_GROUP, "prefix-tree", "forward"),
}
"""Option → the estimators that read it; an option that is not listed is read by every estimator."""
SAMPLING: dict[str, tuple[EstimatorName, ...]] = {
    **dict.fromkeys((field.name for field in dataclasses.fields(EngineOptions)), _ROLLING),
    **dict.fromkeys(("device", "threads", "dtype", "chunk_trajectories"), (*_ROLLING, "critic")),
    **dict.fromkeys(("model", "task", "task_arg", "temperature", "top_p", "top_k"), _ROLLING),
    **dict.fromkeys(("max_tokens", "stop", "unfinished_reward"), _ROLLING),
}
"""The same for options that the stages of a recipe share: there, [run] may set them for other stages."""


@dataclass(frozen=True, kw_only=True)
class EstimatorOptions:
    """The options of `spo estimate` except its inputs and outputs."""

    GROUP = "Values"

    estimator: EstimatorName = option(
        "Source of the values: new rollouts (monte-carlo), the sampled tree (tree), the other responses (grpo, rloo, "
        "dr-grpo), the prefixes that they share (prefix-tree; tempo adds the term of grpo), a value model (critic), "
        "the policy's probability of the answer (forward); restem and pairs select responses.",
        default="monte-carlo",
        common=True,
    )
    rollouts: str | None = option(
        "Monte Carlo rollouts per state: N, or MIN..MAX to draw more than MIN only if --interval-width requires it. "
        "With forward: N, also 0.",
        default=None,
        default_text=f"{ROLLOUTS}; 0 with forward",
        metavar="N|MIN..MAX",
        group="Monte Carlo",
        common=True,
    )
    interval_width: float | None = option(
        "With MIN..MAX: draw until the Wilson interval of a state's value is this narrow; draw none if the responses "
        "to the question agree on 0 or 1 and their interval is this narrow.",
        default=None,
        default_text=f"{INTERVAL_WIDTH:g}",
        group="Monte Carlo",
        above=0,
        below=1,
        common=True,
    )
    confidence: float | None = option(
        "With MIN..MAX: confidence level of the Wilson interval.",
        default=None,
        default_text=f"{CONFIDENCE:g}",
        group="Monte Carlo",
        above=0,
        below=1,
    )
    budget: int | None = option(
        "With MIN..MAX: maximum total number of rollouts, divided among the questions by their number of states.",
        default=None,
        default_text="no limit",
        group="Monte Carlo",
        minimum=1,
        common=True,
    )
    keep_rollouts: bool = option(
        "Write the rollouts, with their tokens and advantages, to the directory rollouts beside --out; "
        "`spo train --train-rollouts` trains on them.",
        default=False,
        result=False,
        group="Monte Carlo",
        common=True,
    )
    baseline: Literal["mean", "leave-one-out"] = option(
        "With tree and prefix-tree: the value at a segment's start is the mean over all continuations (mean), or over "
        "those outside the segment's own branch (leave-one-out).",
        default="mean",
    )
    normalize_by: Literal["siblings"] | None = option(
        "With tree: divide an advantage by the standard deviation of its siblings' values.",
        default=None,
        default_text="off",
    )
    credit: Literal["parent", "siblings", "treerl", "treepo", "treeadv", "tree-grpo"] = option(
        "With tree: the advantage of a node. parent is V at its end minus V at its start (SPO); siblings divides that "
        "by the siblings' standard deviation (TreeRPO); the others are the rules of their papers.",
        default="parent",
        added=True,
    )
    node_value: Literal["children", "leaves"] = option(
        "With tree: V of a node is the mean over its children, or over the leaves below it.",
        default="children",
        added=True,
    )
    keep_zero: bool = option("With tree, prefix-tree and tempo: keep segments whose advantage is 0.", default=False)
    best_of: int | None = option(
        "Add to an advantage the change in the probability that the best of N attempts succeeds: 1 - (1 - V)^N at the "
        "segment's end minus the same at its start.",
        default=None,
        default_text="off",
        minimum=1,
    )
    reward_threshold: float = option(
        "With restem and pairs: a response with at least this reward is right.", default=1.0, added=True
    )
    max_responses: int = option(
        "With restem: maximum number of selected responses per question, the first ones.",
        default=10,
        added=True,
        minimum=1,
    )
    max_pairs: int = option(
        "With pairs: maximum number of pairs per question; a response is in one pair at most.",
        default=8,
        added=True,
        minimum=1,
    )
    prior_weight: float | None = option(
        "With forward and rollouts: number of rollouts that the probability of the reference answer counts as.",
        default=None,
        default_text=f"{PRIOR_WEIGHT:g}",
        added=True,
        above=0,
    )
    answer_template: str | None = option(
        "With forward: text that follows a state; {answer} is the reference answer, which is scored.",
        default=None,
        default_text="as the prompt asks for the answer",
        added=True,
        metavar="TEXT",
    )
    critic: str | None = option(
        "With critic: directory of the critic. A language model without a value head starts a critic at zero.",
        default=None,
        default_text="none",
        result=False,
        group="Critic",
        metavar="MODEL",
    )
    gae_lambda: float = option(
        "With critic: lambda of the generalized advantages; 0 trusts the next value, 1 only the reward.",
        default=0.95,
        minimum=0,
        maximum=1,
        group="Critic",
    )
    gamma: float = option(
        "With critic: discount of a reward per segment (or token).", default=1.0, minimum=0, maximum=1, group="Critic"
    )
    seed: int = option("Seed of all random numbers.", default=0, group="Sampling", common=True)
    model: str | None = option(
        "Policy that sampled the trajectories.",
        default=None,
        default_text=RECORDED,
        result=False,
        short="-m",
        group="Input",
        metavar="MODEL",
        common=True,
    )
    task: str | None = option(
        "Task whose verifier grades the rollouts.", default=None, default_text=RECORDED, group="Input"
    )
    task_arg: tuple[str, ...] = option(
        "Option of the task.", default=(), default_text=RECORDED, group="Input", metavar="KEY=VALUE"
    )
    temperature: float | None = option(
        "Sampling temperature; 0 is greedy.", default=None, default_text=RECORDED, minimum=0, group="Sampling"
    )
    top_p: float | None = option(
        "Sample from the smallest set of tokens with this total probability.",
        default=None,
        default_text=RECORDED,
        above=0,
        maximum=1,
        group="Sampling",
    )
    top_k: int | None = option(
        "Sample from the K most probable tokens; 0 is all.",
        default=None,
        default_text=RECORDED,
        minimum=0,
        metavar="K",
        group="Sampling",
    )
    max_tokens: int | None = option(
        "Maximum length of a response, prefix included, in tokens.",
        default=None,
        default_text=RECORDED,
        minimum=1,
        group="Sampling",
    )
    stop: tuple[str, ...] | None = option(
        "Text that ends a response.", default=None, default_text=RECORDED, metavar="TEXT", group="Sampling"
    )
    unfinished_reward: float | None = option(
        "Reward of a rollout that reaches --max-tokens without ending.",
        default=None,
        default_text=RECORDED,
        group="Sampling",
    )
    chunk_trajectories: int = option(
        "Number of trajectories whose rollouts are committed at once; a killed job loses about these.",
        default=64,
        minimum=1,
        result=False,
        group="Output",
    )


def check_estimator_options(options: EstimatorOptions) -> None:
    """Check that the estimator reads every option that differs from its default.

    Raises:
      UserError: the message names the option and the estimators that read it.
    """
    least, most = rollout_range(options.rollouts, options.estimator)
    _check_prior(options, least, most)
    for name in ("interval_width", "confidence", "budget"):
        if least == most and options.estimator == "monte-carlo" and getattr(options, name) is not None:
            raise UserError(
                f"--{name.replace('_', '-')} decides whether to draw more rollouts: expected --rollouts MIN..MAX, "
                f"got {least}"
            )
    if options.credit != "parent":
        fixed = {"baseline": "mean", "normalize_by": None, "node_value": "children", "best_of": None}
        for name in (name for name, value in fixed.items() if getattr(options, name) != value):
            raise UserError(f"--credit {options.credit} is a rule of its own: omit --{name.replace('_', '-')}")
    if options.node_value == "leaves" and (options.baseline, options.normalize_by) != ("mean", None):
        raise UserError("--node-value leaves compares with all leaves: omit --baseline and --normalize-by")
    for field in dataclasses.fields(options):
        readers = READ_BY.get(field.name, (options.estimator,))
        if getattr(options, field.name) != field.default and options.estimator not in readers:
            raise UserError(
                f"{flag(field)} is an option of --estimator {', '.join(readers)}; {options.estimator} does not read it"
            )


def _check_prior(options: EstimatorOptions, least: int, most: int) -> None:
    """Check the options of --estimator forward.

    Raises:
      UserError: an adaptive number of rollouts, a weight that has no effect, or a template without an answer.
    """
    if options.estimator != "forward":
        return
    if least < most:
        raise UserError(f"--estimator forward takes a fixed number of rollouts: expected N, got {options.rollouts}")
    if most == 0 and options.prior_weight is not None:
        raise UserError("--prior-weight weighs the prior against rollouts: pass --rollouts N too, or omit it")
    if options.answer_template is not None and options.answer_template.count(ANSWER) != 1:
        raise UserError(f"--answer-template must hold {ANSWER} once; got {options.answer_template!r}")


def rollout_range(text: str | None, estimator: EstimatorName = "monte-carlo") -> tuple[int, int]:
    """Return the minimum and maximum number of rollouts of a state: `4..32` → (4, 32), `9` → (9, 9), None → (9, 9).

    Raises:
      UserError: text of another form, MIN below 1 (with forward: below 0) or above MAX.
    """
    fewest, default = (0, 0) if estimator == "forward" else (1, ROLLOUTS)
    match = re.fullmatch(r"(\d{1,9})(?:\.\.(\d{1,9}))?", str(default if text is None else text).strip())
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (-1, -1)
    if fewest == 0 and 0 <= least <= most:
        return least, most
    if not 1 <= least <= most:
        raise UserError(f"--rollouts must be N or MIN..MAX with 1 ≤ MIN ≤ MAX, such as 9 or 4..32; got {text!r}")
    return least, most


@dataclass(frozen=True, kw_only=True)
class Config(EstimatorOptions, EngineOptions, ExecutorOptions, OutputOptions, SignalOptions):
    """The options of `spo estimate`."""

    GROUP = "Input"

    cutpoints: AnyPath = option("Artefact of `spo segment`.", argument=True, result=False)
    trajectories: AnyPath | None = option(
        "Trajectories that were cut.", default=None, default_text="the path in the cutpoints' lineage", result=False
    )

    def unread(self) -> dict[str, str]:
        """Return the options that the estimator, or a greedy one, does not read."""
        unread = dict.fromkeys(("top_p", "top_k"), SAMPLED) if self.temperature == 0 else {}
        if self.estimator == "forward" and rollout_range(self.rollouts, "forward") == (0, 0):
            # Without rollouts nothing is sampled: the model is read by the trainer's forward pass.
            names = {field.name for field in dataclasses.fields(EngineOptions)} - {
                "device",
                "threads",
                "dtype",
                "model",
            }
            names |= {"top_p", "top_k", "max_tokens", "stop", "unfinished_reward"}
            unread |= dict.fromkeys(sorted(names), "--rollouts of at least 1")
        others = {name: readers for name, readers in SAMPLING.items() if self.estimator not in readers}
        return unread | {name: f"--estimator {', '.join(readers)}" for name, readers in others.items()}

    def __post_init__(self) -> None:
        validate(self)
        check_estimator_options(self)
        if self.keep_rollouts and self.out.name == ROLLOUTS_NAME:
            raise UserError(f"--keep-rollouts writes {self.out}: choose another --out for the advantages")
