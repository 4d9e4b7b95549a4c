"""Find the distinct states of a chunk and sample rollouts from them, round by round, for the Monte Carlo estimator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from stages.core.progress import Progress
from stages.estimators.budget import RolloutBudget, out_of_range
from stages.estimators.segments import SegmentBatch
from stages.maths.allocation import additional_rollouts, grant_rollouts
from stages.maths.ragged import Ragged
from stages.maths.randomness import random_key
from stages.maths.values import monte_carlo_values
from stages.responses.grading import Grade, LengthPenalty, grade
from stages.sampling.protocol import Request, Sample, Sampler, SamplingParams, Usage
from stages.tasks import Task


@dataclass(frozen=True)
class RolloutState:
    """A state where a segment starts: a prompt and the response so far.

    Attributes:
      prefix: int32 [P], token ids of the prompt and the response so far.
      prompt_size: number of tokens of the prompt.
      key: random key of its rollouts; rollout j has the key (key, j), however many rollouts there are.
    """

    question_id: str
    prefix: NDArray[np.int32]
    prompt_size: int
    reference: str
    key: int

    @property
    def response_size(self) -> int:
        """Return the number of tokens of the response before the state."""
        return self.prefix.size - self.prompt_size


@dataclass(frozen=True)
class KeptRollout:
    """One rollout: its tokens, and the verdict on the whole response."""

    sample: Sample
    grade: Grade


@dataclass(frozen=True)
class Rollouts:
    """The rollouts of S states.

    Attributes:
      rewards: S ragged rows, float32, of the rollouts that could be graded.
      kept: the rollouts of each state, ungradable ones too; empty unless `RolloutSampling.keep` is set.
      sampled, prefilled: tokens that the engine sampled and prefilled.
      ungradable: number of rollouts that could not be graded.
    """

    rewards: Ragged
    kept: list[list[KeptRollout]]
    sampled: int
    prefilled: int
    ungradable: int


@dataclass(frozen=True)
class RolloutSampling:
    """Everything that samples and grades rollouts.

    Attributes:
      sampler: None if no rollouts are sampled.
      max_tokens: maximum length of a response, including the tokens before the state.
      unfinished_reward: reward of a rollout that reaches the limit without ending.
      penalty: of long responses, that of the trajectories; None: none.
      keep: return the tokens of the rollouts too, not only their rewards.
    """

    sampler: Sampler | None
    tokenizer: PreTrainedTokenizerBase
    task: Task
    params: SamplingParams
    max_tokens: int
    unfinished_reward: float
    progress: Progress
    penalty: LengthPenalty | None = None
    keep: bool = False


def distinct_states(batch: SegmentBatch, chunk: range, seed: int) -> tuple[list[RolloutState], NDArray[np.int64]]:
    """Return the states to estimate in a chunk; equal states of a question appear once.

    Returns:
      The states, and int64 [S] the index of the state where each segment of the chunk starts (−1: not estimated).
    """
    rows = batch.rows_of(chunk)
    question_ids = batch.trajectories["question_id"].slice(chunk.start, len(chunk)).to_pylist()
    references = batch.trajectories["reference"].slice(chunk.start, len(chunk)).to_pylist()
    numbers: dict[tuple[str, bytes], int] = {}
    states: list[RolloutState] = []
    state_of = np.full(rows.stop - rows.start, -1)
    for i in np.flatnonzero(batch.needs_value[rows]):
        row, start = int(batch.segments.trajectory[rows.start + i]), int(batch.segments.start[rows.start + i])
        prompt = batch.prompts[row]
        prefix = np.concatenate([prompt, batch.responses[row][:start]])
        name = (question_ids[row - chunk.start], prefix.tobytes())
        if name not in numbers:
            numbers[name] = len(states)
            key = random_key(seed, "estimate", *name)
            states.append(RolloutState(name[0], prefix, prompt.size, references[row - chunk.start], key))
        state_of[i] = numbers[name]
    return states, state_of


def sample_rollouts(states: Sequence[RolloutState], budget: RolloutBudget, sampling: RolloutSampling) -> Rollouts:
    """Sample and grade rollouts from every state within the budget.

    The first round samples the minimum from each state of an undecided question. Each further round samples more from
    the states whose interval is too wide; if the limit of a question does not suffice, the widest intervals come first.

    Args:
      states: all states of each question, because they share the limit of the question.

    Raises:
      UserError: a reward is outside [0, 1] and the number of rollouts depends on the rewards.
    """
    names, question = np.unique([state.question_id for state in states], return_inverse=True)
    unlimited = len(states) * budget.maximum
    left = np.array([(budget.limits or {}).get(name, unlimited) for name in names.tolist()], np.int64)
    # Ties between equal intervals are broken by prefix, so the order of the rows does not matter.
    by_prefix = np.array(sorted(range(len(states)), key=lambda i: states[i].prefix.tobytes()), np.int64)
    more = np.array([0 if state.question_id in budget.decided else budget.minimum for state in states], np.int64)
    rewards: list[list[float]] = [[] for _ in states]
    kept: list[list[KeptRollout]] = [[] for _ in states]
    drawn = np.zeros_like(more)
    sampled = prefilled = 0
    while more.any():
        usage = _sample_round(states, drawn, more, rewards, kept, sampling)
        sampled, prefilled = sampled + usage.sampled, prefilled + usage.prefilled
        drawn += more
        left -= np.bincount(question, more, left.size).astype(np.int64)
        more = np.zeros_like(more)
        if budget.is_adaptive:
            values = monte_carlo_values(_check_rewards(rewards, states))
            undecided = by_prefix[values.rollouts[by_prefix] > 0]
            mean, count = values.mean[undecided], values.rollouts[undecided]
            needed, width = additional_rollouts(mean, count, budget.maximum, budget.width, budget.confidence)
            needed = np.minimum(needed, budget.maximum - drawn[undecided])  # ungradable rollouts were drawn, too
            more[undecided] = grant_rollouts(needed, width, question[undecided], left)
    graded = Ragged.of(rewards, np.float32)
    return Rollouts(graded, kept, sampled, prefilled, int(drawn.sum()) - graded.flat.size)


def _sample_round(
    states: Sequence[RolloutState],
    drawn: NDArray[np.int64],
    more: NDArray[np.int64],
    rewards: list[list[float]],
    kept: list[list[KeptRollout]],
    sampling: RolloutSampling,
) -> Usage:
    """Sample `more[i]` further rollouts from state i, append the rewards of the gradable ones to `rewards[i]`.

    Args:
      drawn: [S] number of rollouts drawn so far.
      kept: [S] gets the rollouts themselves, if they are kept.

    Returns:
      The tokens that the engine sampled and prefilled.
    """
    chosen: list[int] = np.flatnonzero(more).tolist()
    requests = []
    for i in chosen:
        state, first = states[i], int(drawn[i])
        keys = tuple(random_key(state.key, j) for j in range(first, first + int(more[i])))
        limit = sampling.max_tokens - state.response_size
        requests.append(Request(state.prefix, keys, limit, text_start=state.prompt_size))

    def on_tokens(done: int, tokens: int, prefilled: int = 0) -> None:
        sampling.progress.advance(0, tokens, prefilled)  # trajectories are done when their chunk is

    assert sampling.sampler is not None, "a state has a number of rollouts above 0 only with a sampler"
    samples, usage = sampling.sampler.sample(requests, sampling.params, on_tokens)
    # The verifier reads the whole response: the tokens before the state, then the rollout.
    rollouts = [(i, sample) for i, group in zip(chosen, samples, strict=True) for sample in group]
    grades = grade(
        sampling.tokenizer,
        sampling.task,
        [np.concatenate([states[i].prefix[states[i].prompt_size :], sample.token_ids]) for i, sample in rollouts],
        [sample.finish_reason for _, sample in rollouts],
        [states[i].reference for i, _ in rollouts],
        unfinished_reward=sampling.unfinished_reward,
        penalty=sampling.penalty,
    )
    for (i, sample), graded in zip(rollouts, grades, strict=True):
        if graded.reward is not None:
            rewards[i].append(graded.reward)
        if sampling.keep:
            kept[i].append(KeptRollout(sample, graded))
    return usage


def _check_rewards(rewards: list[list[float]], states: Sequence[RolloutState]) -> Ragged:
    """Return the rewards as ragged rows.

    Raises:
      UserError: a reward is outside [0, 1].
    """
    found = Ragged.of(rewards, np.float32)
    outside = (found.flat < 0) | (found.flat > 1)
    if outside.any():
        first = int(outside.argmax())
        state = states[int(np.searchsorted(found.offsets, first, side="right")) - 1]
        raise out_of_range(float(found.flat[first]), f"a rollout of question {state.question_id}")
    return found
