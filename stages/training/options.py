"""Owns the options of `spo train`, by what they decide: what is learned from, the loss, the pace. Nothing heavy."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stages.config import option
from stages.errors import UserError

MAX_PER_QUESTION = 32
"""Of a question, the most segments that one iteration trains on under replay (arXiv 2505.23564, appendix H)."""

CRITIC = "critic"
"""The directory of a critic within that of its policy."""


@dataclass(frozen=True, kw_only=True)
class ExperienceOptions:
    """Which segments and tokens are learned from."""

    mask: Literal["cutpoints", "all"] = option(
        "Tokens that are trained: the probability mask, or all.", default="cutpoints"
    )
    replay: int | None = option(
        "Iterations that a segment lives: each is trained on in one of them; left out, everything that is given is.",
        default=None,
        minimum=1,
    )
    max_per_question: int | None = option(
        "With --replay: the most segments of a tree (trajectories of a chain) that an iteration takes of one question; "
        f"left out, {MAX_PER_QUESTION}.",
        default=None,
        minimum=1,
    )
    samples_per_iteration: int | None = option(
        "The most segments of trees, or trajectories of chains, to train on in all; left out, no limit.",
        default=None,
        minimum=1,
    )
    drop_uniform_groups: bool = option(
        "Leave out the questions whose segments all have an advantage of 0.", default=False
    )
    mask_unfinished: bool = option("Leave out the responses that ran out of room.", default=False)


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """What a step minimises."""

    loss: Literal["ppo", "distill"] = option(
        "PPO-clip, or the distillation of the advantages: a squared error per segment, --beta inside it.",
        default="ppo",
    )
    loss_normalisation: Literal["tokens", "sequence", "constant"] = option(
        "What the loss is a mean over: the kept tokens, the sequences' own means, or sequences of a constant length.",
        default="tokens",
    )
    loss_constant: float | None = option(
        "That length, e.g. the longest response allowed (Dr. GRPO).", default=None, above=0
    )
    beta: float = option("Weight of the KL to the reference; 0 needs no reference.", default=1e-4, minimum=0)
    kl: Literal["k1", "k2", "k3"] = option("Estimator of that KL.", default="k3")
    epsilon: float = option("Clip range of the ratio.", default=0.2, minimum=0, below=1)
    epsilon_high: float | None = option("Upper clip range; left out, the same.", default=None, minimum=0)
    whiten: Literal["batch", "micro-batch", "none"] | None = option(
        "Advantages are whitened over the kept tokens of a whole step, of each forward pass, or not; left out, batch "
        "for ppo, none for distill.",
        default=None,
    )
    old_logprobs: Literal["recompute", "recorded"] = option(
        "Old log-probabilities: scored anew by the policy that sampled, or as recorded then, with truncated ratios.",
        default="recompute",
    )
    importance_cap: float = option("Where ratios to recorded log-probabilities are truncated.", default=2.0, minimum=1)
    max_ratio: float = option("A step whose mean ratio is above this is skipped whole.", default=10.0, above=0)


@dataclass(frozen=True, kw_only=True)
class PaceOptions:
    """How large steps are, how many, and in how large passes."""

    learning_rate: float = option("Peak learning rate.", default=1e-6, above=0)
    epochs: int = option("Passes over what is trained on.", default=1, minimum=1)
    per_device_batch_size: int = option(
        "Trajectories (segments of trees) in one forward pass, or as many tokens as they have where they are packed.",
        default=8,
        minimum=1,
        result=False,
    )
    gradient_accumulation_steps: int = option(
        "Forward passes per optimiser step: with the batch size, the trajectories of one step. Ranks share them.",
        default=8,
        minimum=1,
        result=False,
    )
    packing: bool | None = option(
        "Feed what several examples begin with once, under a tree attention mask; left out, where there are trees.",
        default=None,
    )
    lr_schedule: Literal["constant", "linear", "cosine"] = option("After the warm-up.", default="constant")
    warmup_ratio: float = option("Share of the steps that warm up.", default=0.0, minimum=0, maximum=1)
    warmup_steps: int | None = option("Steps that warm up, in place of the share.", default=None, minimum=0)
    total_steps: int | None = option(
        "Steps of the schedule over all calls that continue one optimiser; left out, each call has its own.",
        default=None,
        minimum=1,
    )
    adam_epsilon: float = option("Added to the root of the second moment.", default=1e-8, above=0)
    optimizer_state: Literal["resume", "fresh"] = option(
        "Continue the optimiser's state of the policy's directory if there is one, or start anew.", default="resume"
    )
    head_chunk: int | None = option(
        "Tokens per pass through the output head; left out, by the size of the vocabulary.",
        default=None,
        minimum=1,
        result=False,
    )

    @property
    def batch_size(self) -> int:
        """Trajectories (segments of trees) of one optimiser step."""
        return self.per_device_batch_size * self.gradient_accumulation_steps


@dataclass(frozen=True, kw_only=True)
class CriticOptions:
    """How a critic learns beside the policy."""

    critic_learning_rate: float | None = option(
        "Train the critic that made the advantages too, at this peak, on the policy's schedule; left out, none is.",
        default=None,
        above=0,
    )
    value_clip: float = option(
        "How far a value may move from what it was before its loss lets go; 0: any distance.", default=0.2, minimum=0
    )
    critic: str | None = option("The critic to train; left out, as the advantages say.", default=None, result=False)


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What takes the steps. Where it is and how many ranks share the work changes nothing but rounding."""

    engine: Literal["auto", "torch", "deepspeed"] = option(
        "torch is one process; deepspeed is as many ranks as torchrun, deepspeed or srun have started, which share a "
        "step's batch; auto is deepspeed where they are several, else torch.",
        default="auto",
        result=False,
    )
    zero_stage: int | None = option(
        "What ranks share out (DeepSpeed's ZeRO): 0 nothing, 1 the optimiser's state, 2 gradients too, 3 weights too; "
        "left out, as --deepspeed-config says, else 2.",
        default=None,
        result=False,
        minimum=0,
        maximum=3,
    )
    offload_optimizer: bool = option(
        "Keep the optimiser's state in the host's memory (ZeRO 1 to 3), and step there.", default=False, result=False
    )
    offload_parameters: bool = option(
        "Keep weights in the host's memory while they are not in use (ZeRO 3).", default=False, result=False
    )
    deepspeed_config: Path | None = option(
        'Further settings of DeepSpeed, a JSON file; what flags decide must not stand in it, but for "auto".',
        default=None,
        result=False,
    )


@dataclass(frozen=True, kw_only=True)
class LearningOptions(ExperienceOptions, LossOptions, PaceOptions, CriticOptions, EngineOptions):
    """All of them."""


def check_together(options: LearningOptions) -> None:
    """Refuse options that do not go together.

    Raises:
      UserError: naming them, and what to do.
    """
    distill, constant = options.loss == "distill", options.loss_normalisation == "constant"
    given = {field.name for field in dataclasses.fields(options) if getattr(options, field.name) != field.default}
    conflicts = {
        "--loss distill weighs the log-ratio by --beta: expected one above 0": distill and not options.beta,
        "--loss distill is a mean over segments: leave --loss-normalisation out": (
            distill and options.loss_normalisation != "tokens"
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
        "--loss-normalisation constant needs its length: pass --loss-constant": (
            constant and options.loss_constant is None
        ),
        "--loss-constant is for --loss-normalisation constant: pass that too, or neither": (
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
