"""Collect the examples of one training call: the selections from the experience of every iteration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.configs.train import LearningOptions
from stages.core.errors import UserError
from stages.optimization.batches import Example
from stages.optimization.torch import TorchEngine
from stages.training.experience import Experience, load_experience
from stages.training.kept_rollouts import load_rollouts
from stages.training.pairs import paired
from stages.training.replay import limit_questions, limit_samples, select_by_age
from stages.training.starting_point import Iteration


@dataclass(frozen=True)
class ExamplePool:
    """The examples of a training call, those of older iterations first.

    Attributes:
      ids: unique name of each example: `trajectory_id`, followed by its age if that is not 0.
      names, ages: `trajectory_id` of each example alone (`rollout_id` of a rollout), and its age in iterations.
      groups: group of each example; a batch keeps a group (the siblings in a tree, a pair) together.
      examples: the examples themselves.
      samplers: directory of the model that sampled each example; None if the recorded log-probabilities are used.
      shares_prefixes: whether examples of a group share a prefix: nodes of trees, or rollouts.
      counts: counts for the lineage: examples and questions left out, waiting, aged out unused, and so on.
    """

    ids: list[str]
    names: list[str]
    ages: list[int]
    groups: list[str]
    examples: list[Example]
    samplers: list[Path | None]
    shares_prefixes: bool
    counts: dict[str, int]

    @property
    def figures(self) -> dict[str, float]:
        """The counts for the closing summary."""
        return {name: float(count) for name, count in self.counts.items() if name != "segments"}

    def check_fits(self, engine: TorchEngine, model: Path, *, packed: bool) -> None:
        """Check that a model can read every example.

        Args:
          engine: the opened model.
          model: its directory, for the messages.
          packed: whether forward passes have a tree attention mask.

        Raises:
          UserError: a trajectory is longer than the model's context or has a token outside its vocabulary, or the
            model supports no tree attention mask.
        """
        for identifier, example in zip(self.ids, self.examples, strict=True):
            if example.tokens.size > engine.context_length:
                raise UserError(
                    f"trajectory {identifier} has {example.tokens.size} tokens with its prompt, but the context of "
                    f"{model} is {engine.context_length}; expected trajectories that fit: sample with a smaller "
                    "--max-tokens"
                )
            if example.tokens.size and example.tokens.max() >= engine.vocabulary:
                raise UserError(
                    f"trajectory {identifier} holds token {example.tokens.max()}, but {model} has a vocabulary of "
                    f"{engine.vocabulary} tokens: it was sampled by a model with another vocabulary"
                )
        if packed:
            engine.check_trees(max((example.forward_tokens for example in self.examples), default=0))


def fill_pool(options: LearningOptions, iterations: Sequence[Iteration], *, recorded: bool) -> ExamplePool:
    """Read the experience of each iteration, and select the examples that this call trains on.

    Args:
      iterations: oldest first.
      recorded: use the log-probabilities that the sampler recorded as the old ones.

    Raises:
      UserError: as `load_experience`.
    """
    left_out: dict[str, int] = {}
    selections = []
    for iteration in iterations:
        experience = _load_iteration(options, iteration, recorded=recorded)
        for reason, number in experience.left_out.items():
            left_out[reason] = left_out.get(reason, 0) + number
        selections.append(select_by_age(experience, iteration.age, options.replay, options.max_per_question))
    crowded_out = 0
    if options.replay and options.max_per_question:
        selections, crowded_out = limit_questions(selections, options.max_per_question)
    selections, beyond_limit = limit_samples(selections, options.samples_per_iteration)
    counts = left_out | {"segments": sum(e.segments for one in selections for e in one.experience.examples)}
    if options.replay:
        counts["waiting"] = sum(one.waiting for one in selections)
        counts["aged_out"] = sum(one.aged_out for one in selections)
        counts["crowded_out"] = crowded_out
    if options.samples_per_iteration:
        counts["beyond_limit"] = beyond_limit
    return ExamplePool(
        ids=[name for one in selections for name in _with_age(one.experience.ids, one.age)],
        names=[name for one in selections for name in one.experience.ids],
        ages=[one.age for one in selections for _ in one.experience.ids],
        groups=[name for one in selections for name in _with_age(one.experience.groups, one.age)],
        examples=[example for one in selections for example in one.experience.examples],
        samplers=[
            iteration.sampler for iteration, one in zip(iterations, selections, strict=True) for _ in one.experience.ids
        ],
        shares_prefixes=any(one.experience.shares_prefixes for one in selections),
        counts=counts,
    )


def _load_iteration(options: LearningOptions, iteration: Iteration, *, recorded: bool) -> Experience:
    """Return the experience of an iteration, with its kept rollouts if --train-rollouts asks for them."""
    mask = "cutpoints" if options.mask == "cutpoints" else "all"  # the others thin all tokens (`token_masks`)
    # The correction needs the recorded log-probabilities of every iteration.
    compared = iteration.sampled_by_policy or options.mismatch_correction in ("tis", "mis")
    experience = load_experience(
        iteration.advantages,
        iteration.trajectories,
        mask,
        recorded=recorded,
        compared=compared,
        kept=options.token_metrics,
        drop_uniform=options.drop_uniform_groups,
        drop_unfinished=options.mask_truncated_completions,
    )
    if options.loss == "dpo-positive":
        return paired(experience, iteration.advantages.path)
    if iteration.rollouts is None or options.train_rollouts == "none":
        return experience
    rollouts = load_rollouts(
        iteration.rollouts,
        iteration.trajectories,
        mask,
        only_signal=options.train_rollouts == "signal",
        per_state=options.rollouts_per_state,
        recorded=recorded,
        compared=compared,
        kept=options.token_metrics,
        drop_unfinished=options.mask_truncated_completions,
    )
    return experience.joined(rollouts)


def _with_age(names: Sequence[str], age: int) -> list[str]:
    """Return names that differ from those of other iterations; those of the current one (age 0) are unchanged."""
    return [f"{name} of {age} iterations ago" if age else name for name in names]
