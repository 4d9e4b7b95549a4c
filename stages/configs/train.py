"""Define the options of `spo train`, and check the combinations of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from stages.configs.execution import ExecutorOptions
from stages.configs.shared import ReportOptions, TrainingOptions
from stages.core.config import option, validate
from stages.core.errors import UserError
from stages.core.paths import AnyPath

MAX_PER_QUESTION = 32
"""Default maximum of segments per question and iteration under replay (arXiv 2505.23564, appendix H)."""

CRITIC = "critic"
"""Name of the critic's directory inside the directory of its policy."""

TOKEN_METRICS_NAME = "token-metrics"
"""Name of the directory of --token-metrics inside the directory of its policy."""


@dataclass(frozen=True, kw_only=True)
class LearningOptions:
    """All options of `spo train` except its inputs and outputs."""

    # Segments and tokens to train on.
    mask: Literal["cutpoints", "all", "entropy", "random"] = option(
        "Tokens to train on; cutpoints are those of the probability mask.",
        default="cutpoints",
        common=True,
        group="Tokens and segments",
    )
    mask_fraction: float = option(
        "With --mask entropy and random: fraction of the tokens to train on.",
        default=0.2,
        added=True,
        above=0,
        maximum=1,
        group="Tokens and segments",
    )
    replay: int | None = option(
        "Lifetime of a segment in iterations; each is trained on once.",
        default=None,
        default_text="off, train on everything given",
        minimum=1,
        common=True,
        group="Tokens and segments",
    )
    max_per_question: int | None = option(
        "With --replay: maximum number of segments of a tree (trajectories of a chain) per question and iteration.",
        default=None,
        default_text=str(MAX_PER_QUESTION),
        minimum=1,
        group="Tokens and segments",
    )
    samples_per_iteration: int | None = option(
        "Maximum number of segments (trees) or trajectories (chains) to train on.",
        default=None,
        default_text="no limit",
        minimum=1,
        group="Tokens and segments",
    )
    train_rollouts: Literal["none", "all", "signal"] = option(
        "Train also on the rollouts that `spo estimate --keep-rollouts` wrote beside the advantages: none, all, or "
        "those of states whose rollouts differ in reward (signal).",
        default="none",
        added=True,
        group="Tokens and segments",
    )
    rollouts_per_state: int | None = option(
        "With --train-rollouts: maximum number of rollouts of a state.",
        default=None,
        added=True,
        default_text="no limit",
        minimum=1,
        group="Tokens and segments",
    )
    drop_uniform_groups: bool = option(
        "Leave out questions whose segments all have an advantage of 0.", default=False, group="Tokens and segments"
    )
    mask_truncated_completions: bool = option(
        "Leave responses that reached the token limit without ending out of the loss.",
        default=False,
        group="Tokens and segments",
    )

    # Objective of a step.
    loss: Literal[
        "ppo", "gspo", "segment-ratio", "cispo", "dppo", "sapo", "clip-cov", "kl-cov", "nll", "distill", "dpo-positive"
    ] = option(
        "Loss of a step; see docs/methods.md.",
        default="ppo",
        common=True,
        group="Loss",
    )
    loss_normalization: Literal["tokens", "sequence", "constant"] = option(
        "Average the loss over all kept tokens (tokens), over the sequences' means (sequence), or over sequences of "
        "--loss-constant tokens (constant).",
        default="tokens",
        group="Loss",
    )
    loss_constant: float | None = option(
        "Length for --loss-normalization constant, e.g. the maximum response length (Dr. GRPO).",
        default=None,
        default_text="none",
        above=0,
        group="Loss",
    )
    beta: float = option(
        "Weight of the KL divergence to the reference (see --kl-normalization); 0 needs none.",
        default=1e-4,
        minimum=0,
        common=True,
        group="Loss",
    )
    kl: Literal["k1", "k2", "k3"] = option("Estimator of the KL divergence.", default="k3", group="Loss")
    kl_normalization: Literal["sequence-sum", "tokens"] = option(
        "Average the KL divergence over sequences, of their sums over tokens (sequence-sum), or like the token losses, "
        "by --loss-normalization, as TRL and verl do (tokens): at 200 tokens per sequence, 200 times less.",
        default="sequence-sum",
        added=True,
        group="Loss",
    )
    epsilon: float = option(
        "Clip range of the probability ratio; with dppo, of the difference of the probabilities.",
        default=0.2,
        minimum=0,
        below=1,
        group="Loss",
    )
    epsilon_high: float | None = option(
        "Upper clip range of the probability ratio.",
        default=None,
        default_text="the value of --epsilon",
        minimum=0,
        group="Loss",
    )
    whiten: Literal["batch", "micro-batch", "none"] | None = option(
        "Whiten advantages over the kept tokens of an optimizer step (batch), of a forward pass (micro-batch), or not "
        "(none).",
        default=None,
        default_text="none for distill, nll and dpo-positive, else batch",
        group="Loss",
    )
    old_logprobs: Literal["recompute", "recorded"] = option(
        "Old log-probabilities: recomputed with the policy that sampled, or those recorded while sampling, with "
        "truncated ratios.",
        default="recompute",
        group="Loss",
    )
    importance_cap: float = option(
        "With --old-logprobs recorded: upper limit of the importance ratios.",
        default=2.0,
        minimum=1,
        group="Loss",
    )
    dual_clip: float | None = option(
        "Limit the loss of a token with a negative advantage A to this times |A|, e.g. 3.",
        default=None,
        default_text="off",
        added=True,
        above=1,
        group="Loss",
    )
    entropy_bonus: float = option(
        "Weight of the mean entropy of the kept tokens, which is added to the objective.",
        default=0.0,
        added=True,
        minimum=0,
        group="Loss",
    )
    mismatch_correction: Literal["none", "tis", "mis"] | None = option(
        "Weight a token's loss by the ratio of the recomputed to the recorded old probability: truncated at "
        "--mismatch-cap (tis), or 0 above it (mis).",
        default=None,
        default_text="tis if the sampler had another engine or dtype, else none",
        added=True,
        group="Loss",
    )
    mismatch_cap: float = option(
        "With --mismatch-correction: upper limit of the weights.", default=2.0, added=True, minimum=1, group="Loss"
    )
    mismatch_level: Literal["token", "sequence"] = option(
        "With --mismatch-correction: one weight per token, or the product over the kept tokens of a sequence.",
        default="token",
        added=True,
        group="Loss",
    )
    cov_fraction: float = option(
        "With clip-cov and kl-cov: share of the tokens, those of the largest covariance of log-probability and "
        "advantage, that get no gradient (clip-cov) or a penalty (kl-cov).",
        default=2e-4,
        added=True,
        above=0,
        maximum=1,
        group="Loss",
    )
    kl_cov_weight: float = option(
        "With kl-cov: weight of the penalty |log-ratio|.", default=1.0, added=True, minimum=0, group="Loss"
    )
    pair_penalty: float = option(
        "With dpo-positive: weight of the drop of a right response's log-probability below the reference; 0 is DPO.",
        default=50.0,
        added=True,
        minimum=0,
        group="Loss",
    )
    max_ratio: float = option(
        "Skip a step whose mean probability ratio is above this.", default=10.0, above=0, group="Loss"
    )

    # Size, number and learning rate of the steps.
    learning_rate: float = option("Peak learning rate.", default=1e-6, above=0, common=True, group="Optimization")
    epochs: int = option("Passes over the trajectories.", default=1, minimum=1, common=True, group="Optimization")
    per_device_batch_size: int = option(
        "Trajectories (segments of trees) per forward pass; a packed pass holds as many tokens as they have.",
        default=8,
        minimum=1,
        result=False,
        common=True,
        group="Optimization",
    )
    gradient_accumulation_steps: int = option(
        "Forward passes per optimizer step, shared among the ranks.",
        default=8,
        minimum=1,
        result=False,
        common=True,
        group="Optimization",
    )
    packing: bool | None = option(
        "Compute prefixes that several examples share once, under a tree attention mask.",
        default=None,
        default_text="on for trees and kept rollouts, else off",
        group="Engine",
    )
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = option(
        "Schedule of the learning rate after the warm-up.",
        default="constant",
        group="Optimization",
    )
    warmup_ratio: float = option(
        "Share of the steps that warm up, from 0 to 1.", default=0.0, minimum=0, maximum=1, group="Optimization"
    )
    warmup_steps: int | None = option(
        "Number of steps that warm up.",
        default=None,
        default_text="given by --warmup-ratio",
        minimum=0,
        group="Optimization",
    )
    total_steps: int | None = option(
        "Length of the schedule in steps, over all calls that continue one optimizer.",
        default=None,
        default_text="the steps of this call",
        minimum=1,
        group="Optimization",
    )
    adam_epsilon: float = option(
        "Term added to the root of Adam's second moment.", default=1e-8, above=0, group="Optimization"
    )
    optimizer_state: Literal["resume", "fresh"] = option(
        "Resume the optimizer state in the policy's directory, if there is one, or start a fresh one.",
        default="resume",
        group="Optimization",
    )
    head_chunk: int | None = option(
        "Tokens per pass through the output head.",
        default=None,
        default_text="set by the vocabulary size",
        minimum=1,
        result=False,
        group="Engine",
    )

    token_metrics: bool = option(
        "Also write what each step saw of every kept token to OUT/token-metrics: old, new and sampler log-probability, "
        "entropy, ratio, clipping, advantage.",
        default=False,
        added=True,
        group="Output",
    )

    # Critic, trained beside the policy.
    critic_learning_rate: float | None = option(
        "Peak learning rate of the critic that made the advantages, on the policy's schedule.",
        default=None,
        default_text="no critic is trained",
        above=0,
        group="Critic",
    )
    value_clip: float = option(
        "Clip range of a value around the value before this call; 0 is no clipping.",
        default=0.2,
        minimum=0,
        group="Critic",
    )
    critic: str | None = option(
        "Critic to train.",
        default=None,
        default_text="the one that made the advantages",
        result=False,
        metavar="MODEL",
        group="Critic",
    )

    # Training engine. Device and number of ranks change the result by rounding only: none enters the fingerprint.
    engine: Literal["auto", "torch", "deepspeed"] = option(
        "torch is one process; deepspeed is the ranks that torchrun, deepspeed or srun started; auto is deepspeed if "
        "there are several ranks.",
        default="auto",
        result=False,
        group="Engine",
        common=True,
    )
    zero_stage: int | None = option(
        "ZeRO stage: the ranks divide 0 nothing, 1 the optimizer state, 2 also gradients, 3 also weights.",
        default=None,
        default_text="from --deepspeed-config, else 2",
        result=False,
        minimum=0,
        maximum=3,
        group="DeepSpeed",
    )
    offload_optimizer: bool = option(
        "Keep the optimizer state in host memory, and step there (ZeRO 1 to 3).",
        default=False,
        result=False,
        group="DeepSpeed",
    )
    offload_parameters: bool = option(
        "Keep weights that are not in use in host memory (ZeRO 3).",
        default=False,
        result=False,
        group="DeepSpeed",
    )
    deepspeed_config: AnyPath | None = option(
        'JSON file with other settings of DeepSpeed; a setting that an option decides must be absent or "auto".',
        default=None,
        default_text="none",
        result=False,
        group="DeepSpeed",
    )

    @property
    def batch_size(self) -> int:
        """Trajectories (segments of trees) per optimizer step."""
        return self.per_device_batch_size * self.gradient_accumulation_steps

    @property
    def depends_on_passes(self) -> bool:
        """Whether the loss of an example depends on the examples that share its forward pass."""
        return self.whiten == "micro-batch" or self.loss in ("clip-cov", "kl-cov")


def check_combinations(options: LearningOptions) -> None:
    """Check that options which depend on each other agree.

    Raises:
      UserError: the message names the conflicting options and the remedy.
    """
    given = {field.name for field in dataclasses.fields(options) if getattr(options, field.name) != field.default}
    for conflicts in (_loss_conflicts, _pair_conflicts, _ratio_conflicts, _data_conflicts):
        for problem in (problem for problem, holds in conflicts(options, given).items() if holds):
            raise UserError(problem)


def _loss_conflicts(options: LearningOptions, given: set[str]) -> dict[str, bool]:
    """Return problem → whether it exists, for --loss and its parameters; `given` are the options off their defaults."""
    distill, constant = options.loss == "distill", options.loss_normalization == "constant"
    return {
        "--loss distill multiplies the log-ratio by --beta: expected --beta greater than 0": distill
        and not options.beta,
        "--loss distill is a mean over segments: omit --loss-normalization": (
            distill and options.loss_normalization != "tokens"
        ),
        f"--loss {options.loss} has no truncated ratios: expected --old-logprobs recompute": (
            options.loss not in ("ppo", "distill") and options.old_logprobs == "recorded"
        ),
        "--loss distill has the divergence inside the square: omit --kl-normalization": (
            distill and "kl_normalization" in given
        ),
        "--kl-normalization requires a --beta greater than 0": not options.beta and "kl_normalization" in given,
        f"--loss {options.loss} clips no ratio: omit --epsilon and --epsilon-high": (
            options.loss in ("distill", "sapo", "kl-cov", "nll", "dpo-positive")
            and bool(given & {"epsilon", "epsilon_high"})
        ),
        "--cov-fraction requires --loss clip-cov or kl-cov": (
            options.loss not in ("clip-cov", "kl-cov") and "cov_fraction" in given
        ),
        "--kl-cov-weight requires --loss kl-cov": options.loss != "kl-cov" and "kl_cov_weight" in given,
        "--dual-clip requires --loss ppo, gspo or segment-ratio": (
            options.loss not in ("ppo", "gspo", "segment-ratio") and options.dual_clip is not None
        ),
        "--loss distill has no entropy term: omit --entropy-bonus": distill and options.entropy_bonus > 0,
        "--loss-normalization constant requires a length: pass --loss-constant": (
            constant and options.loss_constant is None
        ),
        "--loss-constant requires --loss-normalization constant: pass both, or neither": (
            not constant and options.loss_constant is not None
        ),
    }


def _pair_conflicts(options: LearningOptions, given: set[str]) -> dict[str, bool]:
    """Return problem → whether it exists, for --loss dpo-positive, which compares two whole responses."""
    pairs = options.loss == "dpo-positive"
    unread = given & {"kl", "kl_normalization", "loss_normalization", "entropy_bonus", "train_rollouts"}
    unread |= {"whiten"} if options.whiten in ("batch", "micro-batch") else set()
    dividing = given & {"replay", "samples_per_iteration", "mask_truncated_completions"}
    dividing |= {"packing"} if options.packing else set()
    flags = {name: f"--{name.replace('_', '-')}" for name in unread | dividing}
    return {
        "--pair-penalty requires --loss dpo-positive: pass both, or neither": not pairs and "pair_penalty" in given,
        "--loss dpo-positive multiplies the log-ratios by --beta: expected --beta greater than 0, e.g. 0.1": (
            pairs and not options.beta
        ),
        "--loss dpo-positive compares whole responses: pass --mask all": pairs and options.mask != "all",
        **{f"--loss dpo-positive does not read {flags[name]}: omit it": pairs for name in sorted(unread)},
        **{
            f"{flags[name]} may divide a pair, both of which --loss dpo-positive needs: omit it": pairs
            for name in sorted(dividing)
        },
        "--loss dpo-positive has two responses in a pair: expected an even number of trajectories per step "
        "(--per-device-batch-size times --gradient-accumulation-steps)": pairs and options.batch_size % 2 == 1,
    }


def _ratio_conflicts(options: LearningOptions, given: set[str]) -> dict[str, bool]:
    """Return problem → whether it exists, for the ratios to old policies and to the sampler."""
    distill, corrected = options.loss == "distill", options.mismatch_correction in ("tis", "mis")
    return {
        "--mismatch-correction weights the loss of a token: omit it with --loss distill": distill and corrected,
        f"--loss {options.loss} has no ratio: omit --mismatch-correction": (
            options.loss in ("nll", "dpo-positive") and corrected
        ),
        "--old-logprobs recorded takes ratios to the sampler already: omit --mismatch-correction": (
            options.old_logprobs == "recorded" and corrected
        ),
        "--mismatch-cap and --mismatch-level require --mismatch-correction tis or mis": (
            options.mismatch_correction == "none" and bool(given & {"mismatch_cap", "mismatch_level"})
        ),
        "--importance-cap requires --old-logprobs recorded: pass both, or neither": (
            options.old_logprobs == "recompute" and "importance_cap" in given
        ),
    }


def _data_conflicts(options: LearningOptions, given: set[str]) -> dict[str, bool]:
    """Return problem → whether it exists, for segments, tokens, forward passes and the critic."""
    return {
        "--value-clip requires --critic-learning-rate: pass both, or neither": (
            options.critic_learning_rate is None and "value_clip" in given
        ),
        "--max-per-question requires --replay: pass both, or neither": (
            options.replay is None and options.max_per_question is not None
        ),
        "--mask-fraction requires --mask entropy or random": (
            options.mask not in ("entropy", "random") and "mask_fraction" in given
        ),
        "--rollouts-per-state requires --train-rollouts all or signal": (
            options.train_rollouts == "none" and options.rollouts_per_state is not None
        ),
        "--packing chooses the examples of a forward pass: pass --whiten batch or none, or --no-packing": (
            bool(options.packing) and options.whiten == "micro-batch"
        ),
        f"--packing chooses the examples of a forward pass, within which --loss {options.loss} takes covariances: pass "
        "--no-packing": bool(options.packing) and options.loss in ("clip-cov", "kl-cov"),
        "--critic requires --critic-learning-rate: pass both, or neither": (
            options.critic is not None and options.critic_learning_rate is None
        ),
        "--train-rollouts has no values for a critic: omit it, or --critic-learning-rate": (
            options.critic_learning_rate is not None and options.train_rollouts != "none"
        ),
        "a critic is trained on the current iteration only: omit --replay, or --critic-learning-rate": (
            options.critic_learning_rate is not None and options.replay is not None
        ),
    }


def resolve_training_engine(options: LearningOptions, ranks: int) -> Literal["torch", "deepspeed"]:
    """Return the engine for this number of ranks; `auto` is DeepSpeed if there are several.

    Raises:
      UserError: the engine does not support an option, or the number of ranks.
    """
    engine = options.engine
    if engine == "auto":
        engine = "deepspeed" if ranks > 1 else "torch"
    if engine == "deepspeed" and options.critic_learning_rate is not None:
        raise UserError("--critic-learning-rate requires --engine torch and a single process")
    deepspeed_options = (
        options.zero_stage,
        options.deepspeed_config,
        options.offload_optimizer,
        options.offload_parameters,
    )
    if engine == "torch" and deepspeed_options != (None, None, False, False):
        raise UserError(
            "--zero-stage, --offload-optimizer, --offload-parameters and --deepspeed-config require --engine "
            "deepspeed: pass it, or omit them"
        )
    if engine == "torch" and ranks > 1:
        raise UserError(f"--engine torch runs in one process, but the launcher started {ranks}")
    return engine


@dataclass(frozen=True, kw_only=True)
class Config(LearningOptions, TrainingOptions, ExecutorOptions, ReportOptions):
    """The options of `spo train`."""

    GROUP = "Input"

    advantages: tuple[AnyPath, ...] = option(
        "Artefacts of `spo estimate`: several iterations from the oldest to the current one, with - for a lost one.",
        argument=True,
        result=False,
    )
    trajectories: tuple[AnyPath, ...] | None = option(
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

    def unread(self) -> dict[str, str]:
        """Return the options of terms that the loss does not have, and of a schedule that does not exist."""
        is_constant = self.lr_scheduler_type == "constant" and not self.warmup_ratio and not self.warmup_steps
        schedule = "--lr-scheduler-type linear or cosine, or of a warm-up"
        return (dict.fromkeys(("reference_model", "kl"), "--beta above 0") if not self.beta else {}) | (
            {"total_steps": schedule} if is_constant else {}
        )

    def __post_init__(self) -> None:
        validate(self)
        check_combinations(self)
