"""Grow trees within a budget of tokens: each new branch leaves the state whose value is least certain.

A tree begins with a few whole responses. Then one branch at a time is sampled to the end of its response and graded. It
leaves the state with the widest Wilson interval of its value, given the leaves below it (`stages.maths.growth`), until
no state is left from which a branch fits into the budget. States are the prompt and, in every response, the places
after every M tokens, or those of doubt. The nodes are those of `stages.responses.trees`.

The next branch of a question depends on its own responses alone, so chunks, parts and batches do not change a tree. One
call of the engine samples the next branch of every question of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
import pyarrow as pa

from stages.core.errors import UserError
from stages.maths.branch_points import most_doubtful
from stages.maths.growth import find_leaves, widest_state
from stages.maths.partition import find_cutpoints
from stages.maths.ragged import Ragged
from stages.maths.randomness import random_key
from stages.responses.generation import Sampling
from stages.responses.grading import Grade, grade
from stages.responses.trees import TreeNode, tree_table
from stages.sampling.protocol import OnTokens, Request, Sample, Usage
from stages.tasks import Question


@dataclass(frozen=True)
class Growth:
    """How trees grow.

    Attributes:
      budget: tokens per question.
      first: number of whole responses that a tree begins with.
      segment_tokens: M, if trees branch after every M tokens.
      branch_at: where they branch otherwise: at any token, the largest entropy or surprisal first, or at cutpoints.
      rho: probability below which a token is a cutpoint.
    """

    budget: int
    first: int
    segment_tokens: int
    branch_at: Literal["entropy", "surprisal", "cutpoints"] | None
    rho: float


@dataclass(frozen=True)
class _Response:
    """A whole response, and where it leaves another one.

    Attributes:
      parent: number of the response that it leaves; −1: the prompt.
      offset: number of tokens before it leaves.
      key: random key of its sample.
      sample: its own tokens, to the end of the response.
      token_ids: int32 [T], of the whole response.
      places: int64 [K] offsets in the response, behind `offset`, where branches may leave it.
      doubt: float64 [K].
    """

    parent: int
    offset: int
    key: int
    sample: Sample
    token_ids: np.ndarray
    grade: Grade
    places: np.ndarray
    doubt: np.ndarray


@dataclass
class _Tree:
    """The responses to one question, in the order in which they were sampled."""

    question: int
    key: tuple[int | str, ...]
    responses: list[_Response] = field(default_factory=list)

    @property
    def spent(self) -> int:
        """Number of tokens that were sampled."""
        return sum(response.sample.token_ids.size for response in self.responses)

    def keys_at(self, owner: int, place: int, count: int) -> tuple[int, ...]:
        """Return the random keys of the next branches from a state.

        Response i to the prompt has the key that it has without a tree.
        """
        first = sum((one.parent, one.offset) == (owner, place) for one in self.responses)
        name = self.key if owner < 0 else (self.responses[owner].key, place)
        return tuple(random_key(*name, i) for i in range(first, first + count))

    def choose(self, budget: int) -> tuple[int, int] | None:
        """Return the state (owner, place) that the next branch leaves; None if no branch fits into the budget."""
        one = self.responses
        parent, offset, length = (
            np.array(values, np.int64)
            for values in zip(*((r.parent, r.offset, r.token_ids.size) for r in one), strict=True)
        )
        reward = np.array([np.nan if r.grade.reward is None else r.grade.reward for r in one])
        owner = np.concatenate([[-1], np.repeat(np.arange(len(one)), [r.places.size for r in one])])
        place = np.concatenate([[0], *(r.places for r in one)])
        doubt = np.concatenate([[0.0], *(r.doubt for r in one)])
        leaves = find_leaves(parent, offset, length, reward, owner, place)
        state = widest_state(leaves, doubt, budget - self.spent)
        return None if state is None else (int(owner[state]), int(place[state]))

    def nodes(self) -> Iterator[TreeNode]:
        """Yield the nodes: the tokens of a response between two places where branches leave it."""
        ends: dict[tuple[int, int], tuple[int, ...]] = {(-1, 0): ()}  # state → path of the node that ends there
        branches: dict[tuple[int, int], int] = {}  # state → branches that left it so far
        for number, response in enumerate(self.responses):
            state = (response.parent, response.offset)
            # Branch 0 of a state inside a response is the response's own continuation; the prompt has none.
            branch = branches[state] = branches.get(state, -1 if response.parent < 0 else 0) + 1
            path, own = (*ends[state], branch), response.sample
            cuts = sorted({one.offset for one in self.responses if one.parent == number})
            for start, end in pairwise([response.offset, *cuts, response.token_ids.size]):
                is_last = end == response.token_ids.size
                part = slice(start - response.offset, end - response.offset)
                sample = Sample(own.token_ids[part], own.logprobs[part], own.finish_reason)
                reason, verdict = (own.finish_reason, response.grade) if is_last else ("segment", None)
                yield TreeNode(self.question, path, response.key, sample, response.token_ids[:end], reason, verdict)
                ends[number, end] = path
                path = (*path, 0)


def answer(
    questions: Sequence[Question],
    prompts: Sequence[np.ndarray],
    sampling: Sampling,
    on_tokens: OnTokens,
    *,
    growth: Growth,
) -> tuple[pa.Table, Usage]:
    """Grow a tree of responses to each question; return rows as `trees.answer`.

    Args:
      prompts: int32 [P] token ids per question.
      on_tokens: called with what was done since its last call; a tree counts as a sample.

    Raises:
      UserError: a reward is not in [0, 1].
    """
    trees = [_Tree(number, (*sampling.key, question.id)) for number, question in enumerate(questions)]
    usage = Usage(0, 0, 0)

    def on_branches(done: int, tokens: int, prefilled: int = 0) -> None:
        on_tokens(0, tokens, prefilled)

    growing, count = [(tree, (-1, 0)) for tree in trees], growth.first
    while growing:
        added = _sample(growing, count, questions, prompts, sampling, growth, on_branches)
        usage = Usage(
            usage.sampled + added.sampled,
            usage.prefilled + added.prefilled,
            usage.distinct_prefix_tokens + added.distinct_prefix_tokens,
        )
        chosen = [(tree, tree.choose(growth.budget)) for tree, _ in growing]
        growing, count = [(tree, state) for tree, state in chosen if state], 1
        on_tokens(len(chosen) - len(growing), 0)
    nodes = sorted((node for tree in trees for node in tree.nodes()), key=lambda node: (node.question, node.path))
    return tree_table(nodes, questions, prompts, sampling), usage


def _sample(
    growing: Sequence[tuple[_Tree, tuple[int, int]]],
    count: int,
    questions: Sequence[Question],
    prompts: Sequence[np.ndarray],
    sampling: Sampling,
    growth: Growth,
    on_tokens: OnTokens,
) -> Usage:
    """Add branches to trees.

    Args:
      growing: trees, each with the state (owner, place) that its branches leave.
      count: number of branches of each tree.
    """
    requests, before = [], []
    for tree, (owner, place) in growing:
        prompt, response = prompts[tree.question], np.empty(0, np.int32)
        if owner >= 0:
            response = tree.responses[owner].token_ids[:place]
        keys, prefix = tree.keys_at(owner, place, count), np.concatenate([prompt, response])
        requests.append(Request(prefix, keys, sampling.max_tokens - place, text_start=prompt.size))
        before.append(response)
    samples, usage = sampling.sampler.sample(requests, sampling.params, on_tokens, remember=True)
    drawn = [
        (tree, owner, place, key, sample, np.concatenate([response, sample.token_ids]))
        for (tree, (owner, place)), request, response, own in zip(growing, requests, before, samples, strict=True)
        for key, sample in zip(request.keys, own, strict=True)
    ]
    grades = grade(
        sampling.tokenizer,
        sampling.task,
        [tokens for *_, tokens in drawn],
        [sample.finish_reason for *_, sample, _ in drawn],
        [questions[tree.question].reference for tree, *_ in drawn],
        sampling.unfinished_reward,
    )
    for (tree, owner, place, key, sample, tokens), verdict in zip(drawn, grades, strict=True):
        _check_reward(verdict.reward, questions[tree.question])
        places, doubt = find_places(sample, place, growth)
        tree.responses.append(_Response(owner, place, key, sample, tokens, verdict, places, doubt))
    return usage


def find_places(sample: Sample, offset: int, growth: Growth) -> tuple[np.ndarray, np.ndarray]:
    """Return where branches may leave a response: int64 [K] offsets in it, increasing, and their doubt, float64 [K].

    Args:
      sample: the end of a response.
      offset: number of tokens of the response before it. There it leaves another response, which has the place.
    """
    size = sample.token_ids.size
    if growth.branch_at is None:
        step = growth.segment_tokens
        places = np.arange((offset // step + 1) * step, offset + size, step, dtype=np.int64)
        return places, np.zeros(places.size)
    if growth.branch_at == "entropy":
        assert sample.entropies is not None, "`spo rollout` requests entropies with --branch-at entropy"
        doubt = sample.entropies
    else:
        doubt = np.maximum(-sample.logprobs, 0)
    places = most_doubtful(doubt, size)
    if growth.branch_at == "cutpoints":
        places = places[find_cutpoints(Ragged.of([sample.logprobs], np.float32), growth.rho)[places]]
    return places + offset, doubt[places].astype(np.float64)


def _check_reward(reward: float | None, question: Question) -> None:
    """Check that the Wilson interval is defined for a reward.

    Raises:
      UserError: it is not in [0, 1].
    """
    if reward is not None and not 0 <= reward <= 1:
        raise UserError(
            f"--tree-budget needs rewards from 0 to 1; a response to question {question.id} has {reward:g}: pass a "
            "shape with --tree"
        )
