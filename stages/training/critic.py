"""Train a critic together with the policy: find it through the lineage of the advantages, update it, save it.

Every policy step is also a critic step, on all segment boundaries of the same trajectories, whatever the mask keeps.
The targets are the returns, advantage + value_start: the TD(λ) returns of the critic that made the advantages. The
critic is saved in `critic/` in the policy's directory, where `spo estimate --critic` of the next iteration finds it.
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
from stages.core.paths import AnyPath, as_path, is_path_reference, relative_path
from stages.models import checkpoints
from stages.models.checkpoints import OPTIMIZER_FILE
from stages.models.pruning import check_optimizer, check_weights, digest_of
from stages.models.transfer import origin
from stages.optimization.critic import Critic, CriticExample, has_head, open_critic, update_critic
from stages.optimization.optimizer import AdamWConfig
from stages.optimization.step import Engine
from stages.shards.lineage import Source, model_source
from stages.shards.parts import Artefact
from stages.shards.tables import ragged, rows_by_name
from stages.training.resumable import ModelWriter
from stages.training.starting_point import Iteration


@dataclass(frozen=True)
class CriticStart:
    """The critic that a call starts from.

    Attributes:
      directory: its model directory.
      resumes_optimizer: whether the optimizer state in that directory is continued.
      sources: sources for the lineage: the critic, and that state if it is continued.
    """

    directory: Path
    resumes_optimizer: bool
    sources: tuple[Source, ...]

    def check_not_pruned(self) -> None:
        """Check that the weights and the optimizer state were not pruned, as `StartingPoint.check_not_pruned`."""
        check_weights(self.directory)
        if self.resumes_optimizer:
            check_optimizer(self.directory)


def find_critic(
    iterations: Sequence[Iteration], critic: str | None, out: AnyPath, *, continue_optimizer: bool
) -> CriticStart:
    """Return the critic to train: the given one, else the one that made the advantages.

    Args:
      critic: directory or hub name; None: found through the lineage of the advantages.
      out: directory of the output; the lineage has paths relative to it.
      continue_optimizer: whether to continue the optimizer state of the critic, if there is one.

    Raises:
      UserError: several iterations; trajectories from trees; no critic is given and no single critic made the
        advantages; the critic is missing or has changed.
    """
    *older, iteration = iterations
    if older:
        raise UserError(
            f"a critic is trained on the current iteration alone: expected one ADVANTAGES, got {1 + len(older)}; omit "
            "the older ones, or --critic-learning-rate"
        )
    if iteration.trajectories.read_all(["parent_id"])["parent_id"].null_count < iteration.trajectories.rows:
        raise UserError(
            f"{iteration.trajectories.path} holds nodes of trees, and a critic is trained on whole responses: omit "
            "--critic-learning-rate"
        )
    advantages = iteration.advantages
    critics = {
        (advantages.locate(source.path), source.fingerprint, source.path)
        for part in advantages.parts
        for source in (part.lineage.inputs if part.lineage else ())
        if source.stage == CRITIC
    }
    if critic is None and len(critics) != 1:
        raise UserError(
            f"{advantages.path} was not made by one critic (`spo estimate --estimator critic`), so there is none to "
            "train: omit --critic-learning-rate, or pass --critic"
        )
    located, fingerprint, name = next(iter(critics)) if critic is None else (as_path(critic), None, critic)
    if located.exists():
        name = str(located)
    elif is_path_reference(name):
        raise UserError(f"the critic that made {advantages.path} is no longer at {located}: pass --critic PATH")
    directory = checkpoints.resolve(name, whole=continue_optimizer)
    digest = checkpoints.digest(directory)
    if fingerprint not in (None, digest):
        raise UserError(
            f"the critic at {located} has changed since {advantages.path} was made with it: run `spo estimate` "
            "again, or pass --critic PATH"
        )
    sources = [dataclasses.replace(model_source(name, digest, out), stage=CRITIC)]
    state = directory / OPTIMIZER_FILE
    content = digest_of(state, "optimizer") if has_head(directory) else None  # without a head, the state is a policy's
    resumes_optimizer = continue_optimizer and content is not None
    if content and resumes_optimizer:
        sources.append(Source(relative_path(origin(directory) / state.name, out), content, "critic's optimizer"))
    return CriticStart(directory, resumes_optimizer, tuple(sources))


def load_visited_states(advantages: Artefact, trajectories: Artefact) -> dict[str, CriticExample]:
    """Return the states at which segments start, with their old values and returns, by `trajectory_id`.

    Raises:
      UserError: a segment is of an unknown trajectory or outside its response, a value is not finite, or a prompt is
        empty.
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
        (row < 0, f"is not in {trajectories.path}"),
        ((start < 0) | (start >= responses.lengths[row]), "starts outside its response"),
        (lengths == 0, "starts at an empty prompt, which has no value"),
        (~np.isfinite(value + advantage), "has a value or an advantage that is not finite"),
    ):
        if wrong.any():
            name = cuts["trajectory_id"][int(order[wrong.argmax()])]
            raise UserError(f"a segment of trajectory {name} in {advantages.path} {problem}")
    first = np.searchsorted(row, np.arange(len(ids) + 1))
    return {
        ids[i]: CriticExample(
            np.concatenate([prompts[i], responses[i]]), lengths[own], value[own], (value + advantage)[own]
        )
        for i in np.flatnonzero(np.diff(first)).tolist()
        for own in [slice(first[i], first[i + 1])]
    }


class CriticTrainer:
    """Updates a critic on the trajectories of each policy step."""

    def __init__(
        self, critic: Critic, visited: dict[str, CriticExample], learning_rate: float, *, size: int, clip: float | None
    ) -> None:
        """Check that the critic can read every state.

        Args:
          visited: the states of each trajectory, from `load_visited_states`.
          learning_rate: the peak learning rate.
          size: number of trajectories in a forward pass.
          clip: clip range of the values, as in `maths.gae.value_loss`; None: no clipping.

        Raises:
          UserError: a state is longer than the critic's context or has a token outside its vocabulary.
        """
        self._critic, self._visited, self._peak, self._size, self._clip = critic, visited, learning_rate, size, clip
        for name, one in visited.items():
            if one.lengths[-1] > critic.context_length or one.tokens.max() >= critic.vocabulary:
                raise UserError(
                    f"trajectory {name} has a state of {one.lengths[-1]} tokens and a token {one.tokens.max()}, but "
                    f"the critic has a context of {critic.context_length} tokens and a vocabulary of "
                    f"{critic.vocabulary}: pass another --critic"
                )

    @classmethod
    def open(
        cls,
        start: CriticStart,
        iteration: Iteration,
        checkpoint: Path | None,
        adam: AdamWConfig,
        options: LearningOptions,
        **opened: Any,
    ) -> CriticTrainer:
        """Open the critic that a call trains, and load its states.

        Args:
          checkpoint: policy of an unfinished run, with the critic in it, to resume from; None if there is none.
          opened: further options of `optimization.critic.open_critic`.

        Raises:
          UserError: as `open_critic`, `load_visited_states` and `CriticTrainer`.
        """
        assert options.critic_learning_rate is not None, "the options must ask for a critic"
        critic = open_critic(
            checkpoint / CRITIC if checkpoint else start.directory,
            adam,
            continue_optimizer=checkpoint is not None or start.resumes_optimizer,
            **opened,
        )
        visited = load_visited_states(iteration.advantages, iteration.trajectories)
        size, clip = options.per_device_batch_size, options.value_clip or None
        return cls(critic, visited, options.critic_learning_rate, size=size, clip=clip)

    def step(self, names: Sequence[str], rate_factor: float) -> dict[str, float]:
        """Take one step on all states of some trajectories (`optimization.critic.update_critic`); return metrics.

        Args:
          names: `trajectory_id` of each.
          rate_factor: learning rate as a fraction of the peak: the critic follows the schedule of the policy.

        Raises:
          UserError: a loss or gradient is not finite.
        """
        batch = [self._visited[name] for name in names]
        try:
            return update_critic(self._critic, batch, self._size, rate_factor * self._peak, self._clip)
        except FloatingPointError as error:
            raise UserError(f"the critic cannot take a step: {error}; take a lower --critic-learning-rate") from error

    def combined_with(self, policy: Engine) -> ModelWriter:
        """Return a writer of the policy's directory with the critic's directory in it, as one atomic write."""
        return _PolicyWithCritic(policy, self._critic)


@dataclass(frozen=True)
class _PolicyWithCritic:
    """Writes the directory of a policy with the directory of its critic in it: a `ModelWriter`."""

    policy: Engine
    critic: Critic

    def save(self, directory: AnyPath, tokenizer: PreTrainedTokenizerBase, write_more: Callable[[Path], None]) -> None:
        """Write both atomically: the critic is complete before the policy's directory gets its final name."""

        def write_rest(temporary: Path) -> None:
            self.critic.save(temporary / CRITIC, tokenizer)
            write_more(temporary)

        self.policy.save(directory, tokenizer, write_rest)
