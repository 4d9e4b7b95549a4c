"""Owns the critic of a training call: found through the advantages' lineage, moved beside the policy, saved within it.

Every policy step is a critic step as well, on all segment boundaries of the same trajectories, whatever the mask keeps:
towards the returns, advantage + value_start, which are the TD(λ) returns of the critic that made the advantages. It is
written to `critic/` in the policy's directory, where the next iteration's `spo estimate --critic` finds it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from stages.configs.train import CRITIC, LearningOptions
from stages.core.errors import UserError
from stages.core.paths import as_path, is_path_reference, relative_path
from stages.models import checkpoints
from stages.models.checkpoints import OPTIMIZER_FILE
from stages.models.pruning import check_optimizer, check_weights, digest_of
from stages.models.transfer import origin
from stages.optimization.critic import Critic, Visited, has_head, open_critic, update_critic
from stages.optimization.optimizer import Adam
from stages.optimization.step import Engine
from stages.shards.lineage import Source, model_source
from stages.shards.parts import Artefact
from stages.shards.tables import ragged, rows_by_name
from stages.training.resumable import ModelWriter
from stages.training.starting_point import Sampled


@dataclass(frozen=True)
class CriticStart:
    """The critic that a call starts from.

    Attributes:
      optimiser: whether its directory holds a state to continue.
      sources: for the lineage: the critic, and that state.
    """

    directory: Path
    optimiser: bool
    sources: tuple[Source, ...]

    def check_not_pruned(self) -> None:
        """As `StartingPoint.check_not_pruned`."""
        check_weights(self.directory)
        if self.optimiser:
            check_optimizer(self.directory)


def find_critic(
    iterations: Sequence[Sampled], critic: str | None, out: Path, *, continue_optimiser: bool
) -> CriticStart:
    """The critic that made the advantages, or the one that is named.

    Raises:
      UserError: several iterations; stretches of trees; no critic made the advantages and none is named; it is no
        longer there, or has changed since.
    """
    *older, sampled = iterations
    if older:
        raise UserError(
            f"a critic learns from this iteration alone: expected one ADVANTAGES, got {1 + len(older)}; leave out the "
            "older ones, or --critic-learning-rate"
        )
    if sampled.trajectories.read_all(["parent_id"])["parent_id"].null_count < sampled.trajectories.rows:
        raise UserError(
            f"{sampled.trajectories.path} holds stretches of trees, and a critic is trained on whole responses: leave "
            "--critic-learning-rate out"
        )
    advantages = sampled.advantages
    made_with = {
        (advantages.locate(source.path), source.fingerprint, source.path)
        for part in advantages.parts
        for source in (part.lineage.inputs if part.lineage else ())
        if source.stage == CRITIC
    }
    if critic is None and len(made_with) != 1:
        raise UserError(
            f"{advantages.path} was not made by one critic (`spo estimate --estimator critic`), so there is none to "
            "train: leave --critic-learning-rate out, or pass --critic"
        )
    there, fingerprint, name = next(iter(made_with)) if critic is None else (as_path(critic), None, critic)
    if there.exists():
        name = str(there)
    elif is_path_reference(name):
        raise UserError(f"the critic that made {advantages.path} lies no longer at {there}: pass --critic PATH")
    directory = checkpoints.resolve(name, whole=continue_optimiser)
    digest = checkpoints.digest(directory)
    if fingerprint not in (None, digest):
        raise UserError(
            f"the critic at {there} has changed since {advantages.path} was made with it: run `spo estimate` again, or "
            "pass --critic PATH"
        )
    sources = [dataclasses.replace(model_source(name, digest, out), stage=CRITIC)]
    state = directory / OPTIMIZER_FILE
    content = digest_of(state, "optimizer") if has_head(directory) else None  # without a head it is a policy's
    optimiser = continue_optimiser and content is not None
    if content and optimiser:
        sources.append(Source(relative_path(origin(directory) / state.name, out), content, "critic's optimizer"))
    return CriticStart(directory, optimiser, tuple(sources))


def load_visited_states(advantages: Artefact, trajectories: Artefact) -> dict[str, Visited]:
    """The states where segments begin, with their old values and returns, by `trajectory_id`.

    Raises:
      UserError: segments of unknown trajectories or outside their response, a value that is not finite, an empty
        prompt.
    """
    table = trajectories.read_all(("trajectory_id", "prompt_token_ids", "token_ids"))
    ids = table["trajectory_id"].to_pylist()
    prompts, responses = ragged(table["prompt_token_ids"]), ragged(table["token_ids"])
    cuts = advantages.read_all(("trajectory_id", "start", "value_start", "advantage"))
    row = rows_by_name(cuts["trajectory_id"], table["trajectory_id"])
    start = cuts["start"].to_numpy().astype(np.int64)
    order = np.lexsort((start, row))
    row, start = row[order], start[order]
    value, advantage = (cuts[name].to_numpy()[order] for name in ("value_start", "advantage"))
    lengths = prompts.lengths[row] + start
    for wrong, problem in (
        (row < 0, f"is not of {trajectories.path}"),
        ((start < 0) | (start >= responses.lengths[row]), "begins outside its response"),
        (lengths == 0, "begins with an empty prompt, which is no state to value"),
        (~np.isfinite(value + advantage), "has a value or an advantage that is not finite"),
    ):
        if wrong.any():
            name = cuts["trajectory_id"][int(order[wrong.argmax()])]
            raise UserError(f"a segment of trajectory {name} in {advantages.path} {problem}")
    first = np.searchsorted(row, np.arange(len(ids) + 1))
    return {
        ids[i]: Visited(np.concatenate([prompts[i], responses[i]]), lengths[own], value[own], (value + advantage)[own])
        for i in np.flatnonzero(np.diff(first)).tolist()
        for own in [slice(first[i], first[i + 1])]
    }


class CriticTrainer:
    """A critic in step with a policy."""

    def __init__(
        self, critic: Critic, visited: dict[str, Visited], learning_rate: float, *, size: int, clip: float | None
    ) -> None:
        """Take over a critic and what it learns from.

        Args:
          visited: as `load_visited_states` gives them.
          learning_rate: the peak.
          size: trajectories in one pass.
          clip: as in `maths.gae.value_loss`.

        Raises:
          UserError: a trajectory that the critic cannot read.
        """
        self._critic, self._visited, self._peak, self._size, self._clip = critic, visited, learning_rate, size, clip
        for name, one in visited.items():
            if one.lengths[-1] > critic.context_length or one.tokens.max() >= critic.vocabulary:
                raise UserError(
                    f"trajectory {name} has a state of {one.lengths[-1]} tokens and a token {one.tokens.max()}, but "
                    f"the critic reads {critic.context_length} tokens and knows {critic.vocabulary}"
                )

    @classmethod
    def open(
        cls,
        start: CriticStart,
        sampled: Sampled,
        checkpoint: Path | None,
        adam: Adam,
        options: LearningOptions,
        **opened: Any,
    ) -> CriticTrainer:
        """The critic that a call trains, and what it learns from.

        Args:
          checkpoint: of unfinished work: the policy, and within it the critic, as they were then.
          opened: further options of `engines.critic.open_critic`.

        Raises:
          UserError: as `open_critic`, `load_visited_states` and `CriticTrainer`.
        """
        assert options.critic_learning_rate is not None, "there is a critic to train"
        critic = open_critic(
            checkpoint / CRITIC if checkpoint else start.directory,
            adam,
            continue_optimiser=checkpoint is not None or start.optimiser,
            **opened,
        )
        visited = load_visited_states(sampled.advantages, sampled.trajectories)
        size, clip = options.per_device_batch_size, options.value_clip or None
        return cls(critic, visited, options.critic_learning_rate, size=size, clip=clip)

    def step(self, names: Sequence[str], share: float) -> dict[str, float]:
        """One step on all states of some trajectories, at a share of the peak; see `engines.critic.update_critic`.

        Raises:
          UserError: a loss or gradient that is not finite.
        """
        batch = [self._visited[name] for name in names]
        try:
            return update_critic(self._critic, batch, self._size, share * self._peak, self._clip)
        except FloatingPointError as error:
            raise UserError(f"the critic cannot take its step: {error}; take a lower --critic-learning-rate") from error

    def beside(self, engine: Engine) -> ModelWriter:
        """What writes both: the policy's directory with the critic's in it, all at once."""
        return _Both(engine, self._critic)


@dataclass(frozen=True)
class _Both:
    engine: Engine
    critic: Critic

    def save(self, directory: Path, tokenizer: PreTrainedTokenizerBase, write_more: Callable[[Path], None]) -> None:
        def write_rest(unfinished: Path) -> None:
            self.critic.save(unfinished / CRITIC, tokenizer)
            write_more(unfinished)

        self.engine.save(directory, tokenizer, write_rest)
