"""Grow trees from first chains: responses that branch again where the model was in doubt.

The prompt has B_1 responses, the chains. Each is cut at K tokens of doubt (`stages.maths.branch_points`), and at cut k
it has B_{k+1} branches: its own continuation, and B_{k+1} − 1 fresh ones, which run to the end of their responses. That
is the tree of TreeRL (arXiv 2506.11902, one round of expansion: M = B_1 and, for equal branches, N = K, T = B − 1) and
of FR3E (arXiv 2507.07017). The nodes are those of `stages.responses.trees`, with unequal numbers of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import pyarrow as pa

from stages.maths.branch_points import most_doubtful, spread_cutpoints
from stages.maths.partition import find_cutpoints
from stages.maths.ragged import Ragged
from stages.maths.randomness import random_key
from stages.responses.generation import Sampling
from stages.responses.trees import TreeNode, tree_table
from stages.sampling.protocol import OnTokens, Request, Sample, Usage
from stages.tasks import Question

BranchAt = Literal["entropy", "surprisal", "cutpoints"]


@dataclass(frozen=True)
class _Chain:
    """A whole response to a prompt.

    Attributes:
      question: index of its question in the chunk.
      number: its number among the responses to the prompt.
      key: random key of its sample.
      cuts: [K] offsets where it branches, increasing.
    """

    question: int
    number: int
    key: int
    sample: Sample
    cuts: np.ndarray

    def keys(self) -> list[int]:
        """Return the random keys of its K + 1 nodes."""
        keys = [self.key]
        for _ in self.cuts:
            keys.append(random_key(keys[-1], 0))
        return keys

    def nodes(self) -> Iterator[TreeNode]:
        """Yield its nodes: the tokens between two cuts."""
        borders = [0, *self.cuts.tolist(), self.sample.token_ids.size]
        for depth, ((start, end), key) in enumerate(zip(pairwise(borders), self.keys(), strict=True)):
            is_last = depth == len(self.cuts)
            reason = self.sample.finish_reason if is_last else "segment"
            own = Sample(self.sample.token_ids[start:end], self.sample.logprobs[start:end], self.sample.finish_reason)
            path = (self.number, *[0] * depth)
            yield TreeNode(self.question, path, key, own, self.sample.token_ids[:end], reason)


def max_nodes(branches: Sequence[int]) -> int:
    """Return the number of nodes of a tree whose chains are cut as often as possible: 6 · (1 + 3 + 3) for 6-3-3."""
    return branches[0] * (1 + sum(branches[1:]))


def most_tokens(branches: Sequence[int], max_tokens: int) -> int:
    """Return the most tokens that a tree can take: each chain, and all but one of the branches at each of its cuts."""
    return branches[0] * (1 + sum(count - 1 for count in branches[1:])) * max_tokens


def answer(
    questions: Sequence[Question],
    prompts: Sequence[np.ndarray],
    sampling: Sampling,
    on_tokens: OnTokens,
    *,
    branches: Sequence[int],
    branch_at: BranchAt,
    rho: float,
) -> tuple[pa.Table, Usage]:
    """Sample a tree of responses to each question, as `sample_branching_trees`; return rows as `trees.answer`."""
    nodes, usage = sample_branching_trees(questions, prompts, branches, branch_at, rho, sampling, on_tokens)
    return tree_table(nodes, questions, prompts, sampling), usage


def sample_branching_trees(
    questions: Sequence[Question],
    prompts: Sequence[np.ndarray],
    branches: Sequence[int],
    branch_at: BranchAt,
    rho: float,
    sampling: Sampling,
    on_tokens: OnTokens,
) -> tuple[list[TreeNode], Usage]:
    """Sample a tree of responses to each question, grown from whole responses.

    Random keys are those of `trees.sample_trees`: chain i has the key of response i without a tree, and branch j of a
    node with key κ has the key (κ, j); the key of a node that continues a chain (j = 0) only names its branches.

    Args:
      prompts: int32 [P] token ids per question.
      branches: B_1 chains, then the branches at each cut, the chain's own included.
      branch_at: how the cuts are chosen: the largest entropies, the largest surprisals, or cutpoints (p < ρ).
      on_tokens: called with what was done since its last call; nodes count as samples, and those that are never
        sampled because a chain has few cuts count as finished.

    Returns:
      The nodes in pre-order, question by question, and the tokens that the engine sampled and prefilled.
    """
    chains, first = _sample_chains(questions, prompts, branches, branch_at, rho, sampling, on_tokens)
    fresh, second = _sample_branches(chains, prompts, branches, sampling, on_tokens)
    nodes = [node for chain in chains for node in chain.nodes()] + fresh
    absent = max_nodes(branches) * len(questions) - len(chains) - len(fresh)  # the engine has reported these two
    on_tokens(absent, 0)
    usage = Usage(*(sum(pair) for pair in zip(_counts(first), _counts(second), strict=True)))
    return sorted(nodes, key=lambda node: (node.question, node.path)), usage


def _sample_chains(
    questions: Sequence[Question],
    prompts: Sequence[np.ndarray],
    branches: Sequence[int],
    branch_at: BranchAt,
    rho: float,
    sampling: Sampling,
    on_tokens: OnTokens,
) -> tuple[list[_Chain], Usage]:
    """Sample the responses to the prompts, and choose where each is cut."""
    keys = [tuple(random_key(*sampling.key, question.id, i) for i in range(branches[0])) for question in questions]
    requests = [Request(prompt, own, sampling.max_tokens) for prompt, own in zip(prompts, keys, strict=True)]
    samples, usage = sampling.sampler.sample(requests, sampling.params, on_tokens)
    chains = [
        _Chain(question, i, key, sample, choose_cuts(sample, branch_at, rho, len(branches) - 1))
        for question, (own, drawn) in enumerate(zip(keys, samples, strict=True))
        for i, (key, sample) in enumerate(zip(own, drawn, strict=True))
    ]
    return chains, usage


def choose_cuts(sample: Sample, branch_at: BranchAt, rho: float, count: int) -> np.ndarray:
    """Return at most `count` offsets where a response branches, int64, increasing."""
    if branch_at == "cutpoints":
        return spread_cutpoints(find_cutpoints(Ragged.of([sample.logprobs], np.float32), rho), count)
    if branch_at == "surprisal":
        return most_doubtful(np.maximum(-sample.logprobs, 0), count)
    assert sample.entropies is not None, "`spo rollout` requests entropies with --branch-at entropy"
    return most_doubtful(sample.entropies, count)


def _sample_branches(
    chains: Sequence[_Chain],
    prompts: Sequence[np.ndarray],
    branches: Sequence[int],
    sampling: Sampling,
    on_tokens: OnTokens,
) -> tuple[list[TreeNode], Usage]:
    """Sample the fresh branches of every chain to the end of their responses."""
    where, requests = [], []
    for chain in chains:
        for depth, (cut, key) in enumerate(zip(chain.cuts.tolist(), chain.keys(), strict=False), start=1):
            prefix = np.concatenate([prompts[chain.question], chain.sample.token_ids[:cut]])
            keys = tuple(random_key(key, j) for j in range(1, branches[depth]))
            where.append((chain, depth, cut))
            requests.append(Request(prefix, keys, sampling.max_tokens - cut, text_start=prompts[chain.question].size))
    if not requests:
        return [], Usage(0, 0, 0)
    samples, usage = sampling.sampler.sample(requests, sampling.params, on_tokens)
    nodes = []
    for (chain, depth, cut), request, drawn in zip(where, requests, samples, strict=True):
        for j, (key, sample) in enumerate(zip(request.keys, drawn, strict=True), start=1):
            response = np.concatenate([chain.sample.token_ids[:cut], sample.token_ids])
            path = (chain.number, *[0] * (depth - 1), j)
            nodes.append(TreeNode(chain.question, path, key, sample, response, sample.finish_reason))
    return nodes, usage


def _counts(usage: Usage) -> tuple[int, int, int]:
    return usage.sampled, usage.prefilled, usage.distinct_prefix_tokens
