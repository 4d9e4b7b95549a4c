"""Define the options of `spo train`: what is trained on, the loss, the optimization. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stages.configs.shared import ReportFlags, TrainingFlags
from stages.core.config import option, validate
from stages.core.errors import UserError

MAX_PER_QUESTION = 32
"""Of a question, the most segments that one iteration trains on under replay (arXiv 2505.23564, appendix H)."""

CRITIC = "critic"
"""The directory of a critic within that of its policy."""


@dataclass(frozen=True, kw_only=True)
class ExperienceOptions:
    """Which segments and tokens are trained on."""

    GROUP = "Tokens and segments"

    mask: Literal["cutpoints", "all"] = option(
        "Tokens to train on: those of the probability mask (cutpoints), or all.", default="cutpoints", common=True
    )
    replay: int | None = option(
        "Lifetime of a segment in iterations; each segment is trained on in exactly one of them.",
        default=None,
        default_text="off, train on everything given",
        minimum=1,
        common=True,
    )
    max_per_question: int | None = option(
        "With --replay: maximum number of segments of a tree (trajectories of a chain) per question and iteration.",
        default=None,
        default_text=str(MAX_PER_QUESTION),
        minimum=1,
    )
    samples_per_iteration: int | None = option(
        "Maximum number of segments (trees) or trajectories (chains) to train on.",
        default=None,
        default_text="no limit",
        minimum=1,
    )
    drop_uniform_groups: bool = option("Leave out questions whose segments all have an advantage of 0.", default=False)
    mask_truncated_completions: bool = option("Leave out responses that reached the token limit without ending.", default=False)


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """What a step minimizes."""

    GROUP = "Loss"

    loss: Literal["ppo", "distill"] = option(
        "ppo is PPO-clip; distill is the squared error between advantage and --beta times the log-ratio of a segment.",
        default="ppo",
        common=True,
    )
    loss_normalization: Literal["tokens", "sequence", "constant"] = option(
        "Average the loss over all kept tokens (tokens), over the sequences' means (sequence), or over sequences of "
        "--loss-constant tokens (constant).",
        default="tokens",
    )
    loss_constant: float | None = option(
        "Length for --loss-normalization constant, e.g. the maximum response length (Dr. GRPO).",
        default=None,
        default_text="none",
        above=0,
    )
    beta: float = option(
        "Weight of the KL divergence to the reference model; 0 needs no reference.",
        default=1e-4,
        minimum=0,
        common=True,
    )
    kl: Literal["k1", "k2", "k3"] = option("Estimator of the KL divergence.", default="k3")
    epsilon: float = option("Clip range of the probability ratio.", default=0.2, minimum=0, below=1)
    epsilon_high: float | None = option(
        "Upper clip range of the probability ratio.", default=None, default_text="the value of --epsilon", minimum=0
    )
    whiten: Literal["batch", "micro-batch", "none"] | None = option(
        "Whiten advantages over the kept tokens of an optimizer step (batch), of a forward pass (micro-batch), or not "
        "(none).",
        default=None,
        default_text="batch for ppo, none for distill",
    )
    old_logprobs: Literal["recompute", "recorded"] = option(
        "Old log-probabilities: recomputed with the policy that sampled, or those recorded while sampling, with "
        "truncated ratios.",
        default="recompute",
    )
    importance_cap: float = option(
        "With --old-logprobs recorded: upper limit of the importance ratios.", default=2.0, minimum=1
    )
    max_ratio: float = option("Skip a step whose mean probability ratio is above this.", default=10.0, above=0)


@dataclass(frozen=True, kw_only=True)
class PaceOptions:
    """How large steps are, how many, and in how large passes."""

    GROUP = "Optimization"

    learning_rate: float = option("Peak learning rate.", default=1e-6, above=0, common=True)
    epochs: int = option("Passes over the trajectories.", default=1, minimum=1, common=True)
    per_device_batch_size: int = option(
        "Trajectories (segments of trees) per forward pass; a packed pass holds as many tokens as they have.",
        default=8,
        minimum=1,
        result=False,
        common=True,
    )
    gradient_accumulation_steps: int = option(
        "Forward passes per optimizer step, shared among the ranks.",
        default=8,
        minimum=1,
        result=False,
        common=True,
    )
    packing: bool | None = option(
        "Compute prefixes that several examples share once, under a tree attention mask.",
        default=None,
        default_text="on for trees, else off",
        group="Engine",
    )
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = option(
        "Schedule of the learning rate after the warm-up.", default="constant"
    )
    warmup_ratio: float = option("Share of the steps that warm up, from 0 to 1.", default=0.0, minimum=0, maximum=1)
    warmup_steps: int | None = option(
        "Number of steps that warm up.", default=None, default_text="given by --warmup-ratio", minimum=0
    )
    total_steps: int | None = option(
        "Length of the schedule in steps, over all calls that continue one optimizer.",
        default=None,
        default_text="the steps of this call",
        minimum=1,
    )
    adam_epsilon: float = option("Term added to the root of Adam's second moment.", default=1e-8, above=0)
    optimizer_state: Literal["resume", "fresh"] = option(
        "Resume the optimizer state in the policy's directory, if there is one, or start a fresh one.",
        default="resume",
    )
    head_chunk: int | None = option(
        "Tokens per pass through the output head.",
        default=None,
        default_text="set by the vocabulary size",
        minimum=1,
        result=False,
        group="Engine",
    )

    @property
    def batch_size(self) -> int:
        """Trajectories (segments of trees) of one optimiser step."""
        return self.per_device_batch_size * self.gradient_accumulation_steps


@dataclass(frozen=True, kw_only=True)
class CriticOptions:
    """How a critic learns beside the policy."""

    GROUP = "Critic"

    critic_learning_rate: float | None = option(
        "Peak learning rate of the critic that made the advantages, on the policy's schedule.",
        default=None,
        default_text="no critic is trained",
        above=0,
    )
    value_clip: float = option(
        "Clip range of a value around the value before this call; 0 is no clipping.", default=0.2, minimum=0
    )
    critic: str | None = option(
        "Critic to train.",
        default=None,
        default_text="the one that made the advantages",
        result=False,
        metavar="MODEL",
    )


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What takes the steps. Device and number of ranks change nothing except rounding."""

    GROUP = "DeepSpeed"

    engine: Literal["auto", "torch", "deepspeed"] = option(
        "torch is one process; deepspeed is the ranks that torchrun, deepspeed or srun started; auto is deepspeed if "
        "there are several ranks.",
        default="auto",
        result=False,
        group="Engine",
        common=True,
    )
    zero_stage: int | None = option(
        "ZeRO stage, what the ranks share out: 0 nothing, 1 the optimizer state, 2 also gradients, 3 also weights.",
        default=None,
        default_text="from --deepspeed-config, else 2",
        result=False,
        minimum=0,
        maximum=3,
    )
    offload_optimizer: bool = option(
        "Keep the optimizer state in host memory, and step there (ZeRO 1 to 3).", default=False, result=False
    )
    offload_parameters: bool = option(
        "Keep weights that are not in use in host memory (ZeRO 3).", default=False, result=False
    )
    deepspeed_config: Path | None = option(
        'JSON file with other settings of DeepSpeed; a setting that an option decides must be left out or "auto".',
        default=None,
        default_text="none",
        result=False,
    )


@dataclass(frozen=True, kw_only=True)
class LearningOptions(ExperienceOptions, LossOptions, PaceOptions, CriticOptions, EngineOptions):
    """All options of learning."""


def check_together(options: LearningOptions) -> None:
    """Refuse options that do not go together.

    Raises:
      UserError: naming them, and what to do.
    """
    distill, constant = options.loss == "distill", options.loss_normalization == "constant"
    given = {field.name for field in dataclasses.fields(options) if getattr(options, field.name) != field.default}
    conflicts = {
        "--loss distill weighs the log-ratio by --beta: expected one above 0": distill and not options.beta,
        "--loss distill is a mean over segments: leave --loss-normalization out": (
            distill and options.loss_normalization != "tokens"
        ),
        "--loss distill clips no ratio: leave --epsilon and --epsilon-high out": (
            distill and bool(given & {"epsilon", "epsilon_high"})
        ),
        "--importance-cap is for --old-logprobs recorded: pass that too, or neither": (
            options.old_logprobs == "recompute" and "importance_cap" in given
        ),
        "--value-clip is of a critic that is trained: pass --critic-learning-rate, or neither": (
            options.critic_learning_rate is None and "value_clip" in given
        ),
        "--loss-normalization constant needs its length: pass --loss-constant": (
            constant and options.loss_constant is None
        ),
        "--loss-constant is for --loss-normalization constant: pass that too, or neither": (
            not constant and options.loss_constant is not None
        ),
        "--max-per-question is for --replay: pass the iterations of a life, or neither": (
            options.replay is None and options.max_per_question is not None
        ),
        "--packing decides what shares a forward pass: take --whiten batch or none, or --no-packing": (
            bool(options.packing) and options.whiten == "micro-batch"
        ),
        "--critic is to be trained: pass --critic-learning-rate, or neither": (
            options.critic is not None and options.critic_learning_rate is None
        ),
        "--critic-learning-rate learns from this iteration alone: leave --replay out": (
            options.critic_learning_rate is not None and options.replay is not None
        ),
    }
    if problem := next((problem for problem, wrong in conflicts.items() if wrong), None):
        raise UserError(problem)


def choose_engine(options: LearningOptions, ranks: int) -> Literal["torch", "deepspeed"]:
    """The engine of a call that so many ranks were started for.

    Raises:
      UserError: options that it would not read, or that it cannot do.
    """
    engine = options.engine
    if engine == "auto":
        engine = "deepspeed" if ranks > 1 else "torch"
    if engine == "deepspeed" and options.critic_learning_rate is not None:
        raise UserError("--critic-learning-rate: a critic is trained with --engine torch alone, in one process")
    sharing = (options.zero_stage, options.deepspeed_config, options.offload_optimizer, options.offload_parameters)
    if engine == "torch" and sharing != (None, None, False, False):
        raise UserError(
            "--zero-stage, --offload-optimizer, --offload-parameters and --deepspeed-config are DeepSpeed's: pass "
            "--engine deepspeed, or none of them"
        )
    if engine == "torch" and ranks > 1:
        raise UserError(f"--engine torch is one process, but the launcher has started {ranks}")
    return engine


@dataclass(frozen=True, kw_only=True)
class Config(LearningOptions, TrainingFlags, ReportFlags):
    """The options of `spo train`."""

    GROUP = "Input"

    advantages: tuple[Path, ...] = option(
        "Artefacts of `spo estimate`: several iterations from the oldest to the current one, with - for a lost one.",
        argument=True,
        result=False,
    )
    trajectories: tuple[Path, ...] | None = option(
        "Trajectories of the advantages, in the same order.",
        default=None,
        default_text="the paths in the advantages' lineage",
        result=False,
    )
    model: str | None = option(
        "Policy to start from.",
        default=None,
        default_text="the model that sampled the current iteration",
        result=False,
        short="-m",
        metavar="MODEL",
        common=True,
    )
    reference_model: str | None = option(
        "Reference model of the KL term.",
        default=None,
        default_text="the policy at the start of this call",
        result=False,
        metavar="MODEL",
    )
    temperature: float | None = option(
        "Sampling temperature of the trajectories.", default=None, default_text="as recorded with them", above=0
    )
    seed: int = option("Seed of the order of the trajectories, and of a new adapter.", default=0, group="Optimization")

    def __post_init__(self) -> None:
        validate(self)
        check_together(self)
