"""Owns what one training call learns from: the picks of every iteration's experience, as one pool of examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.configs.train import ExperienceOptions
from stages.core.errors import UserError
from stages.optimization.batches import Example
from stages.optimization.torch import TorchEngine
from stages.training.experience import load_experience
from stages.training.replay import limit_questions, limit_samples, pick
from stages.training.starting_point import Sampled


@dataclass(frozen=True)
class Pool:
    """Examples to learn from, those of older iterations first.

    Attributes:
      ids: of each, unlike any other's: `trajectory_id`, with its age where that is not 0.
      groups: names that those share which stand side by side in a batch (siblings of a tree).
      examples: the same, as the policy step takes them.
      samplers: the model that sampled each; None where its log-probabilities were recorded.
      stretches: whether some are stretches of trees.
      counts: for the lineage: what was left out, what waits for its turn, what aged out unused or was crowded out.
    """

    ids: list[str]
    groups: list[str]
    examples: list[Example]
    samplers: list[Path | None]
    stretches: bool
    counts: dict[str, int]

    @property
    def figures(self) -> dict[str, float]:
        """What the closing summary tells of it."""
        return {name: float(count) for name, count in self.counts.items() if name != "segments"}

    def check_fits(self, engine: TorchEngine, model: Path, *, packed: bool) -> None:
        """Refuse what a model cannot read.

        Raises:
          UserError: a trajectory longer than its context, or with a token that it does not know; trees.
        """
        for identifier, example in zip(self.ids, self.examples, strict=True):
            if example.tokens.size > engine.context_length:
                raise UserError(
                    f"trajectory {identifier} has {example.tokens.size} tokens with its prompt, but the context of "
                    f"{model} is {engine.context_length}; expected trajectories that were sampled within it "
                    "(--max-tokens)"
                )
            if example.tokens.size and example.tokens.max() >= engine.vocabulary:
                raise UserError(
                    f"trajectory {identifier} holds token {example.tokens.max()}, but {model} knows "
                    f"{engine.vocabulary}: it was sampled by a model with another vocabulary"
                )
        if packed:
            engine.check_trees(max((example.fed for example in self.examples), default=0))


def fill_pool(options: ExperienceOptions, sampled: Sequence[Sampled], *, recorded: bool) -> Pool:
    """Reads each iteration's experience and takes from it what this iteration's turn is.

    Raises:
      UserError: as `load_experience`.
    """
    left_out: dict[str, int] = {}
    picks = []
    for one in sampled:
        experience = load_experience(
            one.advantages,
            one.trajectories,
            options.mask,
            recorded=recorded,
            compared=one.own,
            drop_uniform=options.drop_uniform_groups,
            drop_unfinished=options.mask_truncated_completions,
        )
        for reason, number in experience.left_out.items():
            left_out[reason] = left_out.get(reason, 0) + number
        picks.append(pick(experience, one.age, options.replay, options.max_per_question))
    crowded = 0
    if options.replay and options.max_per_question:
        picks, crowded = limit_questions(picks, options.max_per_question)
    picks, beyond = limit_samples(picks, options.samples_per_iteration)
    counts = left_out | {"segments": sum(e.segments for one in picks for e in one.experience.examples)}
    if options.replay:
        counts |= {name: sum(getattr(one, name) for one in picks) for name in ("waiting", "aged_out")}
        counts["crowded_out"] = crowded
    if options.samples_per_iteration:
        counts["beyond_limit"] = beyond

    def named(names: Sequence[str], age: int) -> list[str]:
        return [f"{name} of {age} iterations ago" if age else name for name in names]

    return Pool(
        ids=[name for one in picks for name in named(one.experience.ids, one.age)],
        groups=[name for one in picks for name in named(one.experience.groups, one.age)],
        examples=[example for one in picks for example in one.experience.examples],
        samplers=[source.sampler for source, one in zip(sampled, picks, strict=True) for _ in one.experience.ids],
        stretches=any(one.experience.stretches for one in picks),
        counts=counts,
    )
