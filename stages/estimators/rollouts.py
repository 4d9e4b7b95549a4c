"""Owns the rollouts of the Monte Carlo estimator: which states there are, and drawing from them, round by round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from stages.core.progress import Progress
from stages.estimators.budget import Allotment, out_of_range
from stages.estimators.segments import Cuts
from stages.maths.allocation import additional_rollouts, grant_rollouts
from stages.maths.ragged import Ragged
from stages.maths.randomness import random_key
from stages.maths.values import monte_carlo_values
from stages.responses.grading import grade
from stages.sampling.protocol import Request, Sampler, SamplingParams, Usage
from stages.tasks import Task


@dataclass(frozen=True)
class State:
    """Where a segment begins: a prompt and the response so far.

    Attributes:
      prompt_size: tokens of the prefix that are the prompt's.
      key: of the random numbers of its rollouts; rollout j has (key, j), however many there are.
    """

    question_id: str
    prefix: NDArray[np.int32]
    prompt_size: int
    reference: str
    key: int


@dataclass(frozen=True)
class Drawn:
    """The rewards of S states' rollouts, S ragged rows; tokens that the engine drew and prefilled."""

    rewards: Ragged
    sampled: int
    prefilled: int
    ungradable: int


@dataclass(frozen=True)
class Drawing:
    """What rollouts are drawn and graded with.

    Attributes:
      max_tokens: longest response, what is there already included.
      unfinished_reward: of a rollout that runs out of room.
    """

    sampler: Sampler
    tokenizer: PreTrainedTokenizerBase
    task: Task
    params: SamplingParams
    max_tokens: int
    unfinished_reward: float
    progress: Progress


def distinct_states(cuts: Cuts, chunk: range, seed: int) -> tuple[list[State], NDArray[np.int64]]:
    """The states that are to be estimated in a stretch of trajectories, equal ones of a question once.

    Returns:
      the states, and for each segment of these trajectories the number of the state that it begins at (−1: none).
    """
    rows = cuts.rows_of(chunk)
    question_ids = cuts.trajectories["question_id"].slice(chunk.start, len(chunk)).to_pylist()
    references = cuts.trajectories["reference"].slice(chunk.start, len(chunk)).to_pylist()
    numbers: dict[tuple[str, bytes], int] = {}
    states: list[State] = []
    state_of = np.full(rows.stop - rows.start, -1)
    for i in np.flatnonzero(cuts.wanted[rows]):
        row, start = int(cuts.segments.trajectory[rows.start + i]), int(cuts.segments.start[rows.start + i])
        prompt = cuts.prompts[row]
        prefix = np.concatenate([prompt, cuts.responses[row][:start]])
        name = (question_ids[row - chunk.start], prefix.tobytes())
        if name not in numbers:
            numbers[name] = len(states)
            key = random_key(seed, "estimate", *name)
            states.append(State(name[0], prefix, prompt.size, references[row - chunk.start], key))
        state_of[i] = numbers[name]
    return states, state_of


def draw(states: Sequence[State], allotment: Allotment, drawing: Drawing) -> Drawn:
    """Rollouts from every state, as many as it is allotted.

    In rounds: first the least from each state in doubt, then more where the interval is too wide, the widest first
    where the budget is short. All states of a question must be given, so that they share its budget.

    Raises:
      UserError: a reward outside [0, 1] where the number of rollouts depends on them.
    """
    names, question = np.unique([state.question_id for state in states], return_inverse=True)
    unlimited = len(states) * allotment.most
    left = np.array([(allotment.budget or {}).get(name, unlimited) for name in names.tolist()], np.int64)
    by_name = np.array(sorted(range(len(states)), key=lambda i: states[i].prefix.tobytes()), np.int64)
    more = np.array([0 if state.question_id in allotment.decided else allotment.least for state in states], np.int64)
    rewards: list[list[float]] = [[] for _ in states]
    sampled = prefilled = ungradable = 0
    while more.any():
        usage, lost = _draw_round(states, more, rewards, drawing)
        sampled, prefilled, ungradable = sampled + usage.sampled, prefilled + usage.prefilled, ungradable + lost
        left -= np.bincount(question, more, left.size).astype(np.int64)
        more = np.zeros_like(more)
        if allotment.is_adaptive:
            values = monte_carlo_values(_checked(rewards, states))
            open_ = by_name[values.rollouts[by_name] > 0]
            mean, count = values.mean[open_], values.rollouts[open_]
            wanted, width = additional_rollouts(mean, count, allotment.most, allotment.width, allotment.confidence)
            more[open_] = grant_rollouts(wanted, width, question[open_], left)
    return Drawn(Ragged.of(rewards, np.float32), sampled, prefilled, ungradable)


def _draw_round(
    states: Sequence[State], more: NDArray[np.int64], rewards: list[list[float]], drawing: Drawing
) -> tuple[Usage, int]:
    """Draws `more[i]` further rollouts from each state and appends their rewards; says how many were ungradable."""
    some: list[int] = np.flatnonzero(more).tolist()
    requests = []
    for i in some:
        state, there = states[i], len(rewards[i])
        keys = tuple(random_key(state.key, j) for j in range(there, there + int(more[i])))
        room = drawing.max_tokens - (state.prefix.size - state.prompt_size)
        requests.append(Request(state.prefix, keys, room, text_start=state.prompt_size))
    samples, usage = drawing.sampler.sample(
        requests, drawing.params, lambda finished, tokens: drawing.progress.advance(0, tokens)
    )
    drawn = [(i, sample) for i, of_state in zip(some, samples, strict=True) for sample in of_state]
    grades = grade(
        drawing.tokenizer,
        drawing.task,
        [np.concatenate([states[i].prefix[states[i].prompt_size :], sample.token_ids]) for i, sample in drawn],
        [sample.finish_reason for _, sample in drawn],
        [states[i].reference for i, _ in drawn],
        unfinished_reward=drawing.unfinished_reward,
    )
    for (i, _), graded in zip(drawn, grades, strict=True):
        rewards[i].append(graded.reward or 0.0)
    return usage, sum(graded.reward is None for graded in grades)


def _checked(rewards: list[list[float]], states: Sequence[State]) -> Ragged:
    found = Ragged.of(rewards, np.float32)
    outside = (found.flat < 0) | (found.flat > 1)
    if outside.any():
        first = int(outside.argmax())
        state = states[int(np.searchsorted(found.offsets, first, side="right")) - 1]
        raise out_of_range(float(found.flat[first]), f"a rollout of question {state.question_id}")
    return found
