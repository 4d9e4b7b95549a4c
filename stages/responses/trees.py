"""Trees of responses: sampled level by level, written a stretch a row, and read back as who continues whom.

A response branches after every M tokens (arXiv 2505.23564, SPO-tree). All open nodes of a chunk's questions are drawn
in one call of the engine, which keeps what they share. A stretch that ends the response early is a leaf at its depth;
those of the last level run to the end.
"""

# pyarrow.compute makes its functions at import time:
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.core.errors import UserError
from stages.maths import tree_structure
from stages.maths.randomness import random_key
from stages.maths.values import all_equal
from stages.responses.generation import OnTokens, Sampling
from stages.responses.grading import decode, grade
from stages.sampling.protocol import Request, Sample, Usage
from stages.shards.parts import Artefact
from stages.shards.schemas import TRAJECTORIES
from stages.shards.tables import encode_names, rows_by_name
from stages.tasks import Question


@dataclass(frozen=True)
class Node:
    """One stretch of a tree.

    Attributes:
      question: number of its question in the chunk.
      path: which branch was taken at each level, this one last.
      key: of the random numbers that it was drawn with.
      sample: its tokens.
      response: int32, the tokens from the end of the prompt to its own end.
      finish_reason: "segment" where the response goes on in its children.
    """

    question: int
    path: tuple[int, ...]
    key: int
    sample: Sample
    response: np.ndarray
    finish_reason: Literal["stop", "length", "segment"]


def most_nodes(branches: Sequence[int]) -> int:
    """Nodes of a tree in which no response ends early: 6 + 36 + 216 for 6-6-6."""
    return sum(accumulate(branches, mul))


def answer(
    questions: Sequence[Question],
    prompts: Sequence[np.ndarray],
    sampling: Sampling,
    on_tokens: OnTokens,
    *,
    branches: Sequence[int],
    segment_tokens: int,
) -> tuple[pa.Table, Usage]:
    """Rows of `TRAJECTORIES` that are stretches of trees, pre-order, question by question.

    Rewards are null at inner nodes, and at leaves where the verifier came to no verdict.
    """
    nodes, usage = grow(questions, prompts, branches, segment_tokens, sampling, on_tokens)
    return tree_table(nodes, questions, prompts, sampling), usage


def grow(
    questions: Sequence[Question],
    prompts: Sequence[np.ndarray],
    branches: Sequence[int],
    segment_tokens: int,
    sampling: Sampling,
    on_tokens: OnTokens,
) -> tuple[list[Node], Usage]:
    """A tree of responses to each question: the nodes in pre-order, question by question.

    Branch i of the first level has the key (seed, "rollout", question, i), which is that of response i without a tree;
    branch j of a node with key κ has (κ, j).

    Args:
      prompts: int32 [P] token ids per question.
      branches: children of an open node of each level.
      segment_tokens: M, tokens of a stretch that does not end the response; the last level has no such limit.
    """
    nodes: list[Node] = []
    sampled = prefilled = distinct = 0
    nothing = np.empty(0, np.int32)
    # (question, path, name of the random numbers, response so far) of what is to be continued
    level = [(number, (), (*sampling.key, question.id), nothing) for number, question in enumerate(questions)]
    for depth, count in enumerate(branches):
        is_last = depth == len(branches) - 1
        keys = [tuple(random_key(*name, i) for i in range(count)) for *_, name, _ in level]
        requests = []
        for (number, _, _, response), of_node in zip(level, keys, strict=True):
            left = sampling.max_tokens - response.size
            prefix = np.concatenate([prompts[number], response])
            limit = left if is_last else min(segment_tokens, left)
            requests.append(Request(prefix, of_node, limit, text_start=prompts[number].size))
        samples, usage = sampling.sampler.sample(requests, sampling.params, on_tokens, remember=not is_last)
        sampled, prefilled = sampled + usage.sampled, prefilled + usage.prefilled
        distinct += usage.distinct_prefix_tokens
        found = []
        for (number, path, _, before), of_node, drawn in zip(level, keys, samples, strict=True):
            for i, (key, sample) in enumerate(zip(of_node, drawn, strict=True)):
                response = np.concatenate([before, sample.token_ids])
                room = min(sampling.max_tokens, sampling.sampler.context_length - prompts[number].size)
                goes_on = sample.finish_reason == "length" and not is_last and response.size < room
                reason = "segment" if goes_on else sample.finish_reason
                found.append(Node(number, (*path, i), key, sample, response, reason))
        level = [(n.question, n.path, (n.key,), n.response) for n in found if n.finish_reason == "segment"]
        on_tokens((len(found) - len(level)) * most_nodes(branches[depth + 1 :]), 0)  # what will not be drawn
        nodes += found
    return sorted(nodes, key=lambda node: (node.question, node.path)), Usage(sampled, prefilled, distinct)


def tree_table(
    nodes: Sequence[Node], questions: Sequence[Question], prompts: Sequence[np.ndarray], sampling: Sampling
) -> pa.Table:
    """One row of `TRAJECTORIES` per node; the leaves graded on their whole responses."""
    leaves = [i for i, node in enumerate(nodes) if node.finish_reason != "segment"]
    grades = grade(
        sampling.tokenizer,
        sampling.task,
        [nodes[i].response for i in leaves],
        [nodes[i].finish_reason for i in leaves],
        [questions[nodes[i].question].reference for i in leaves],
        sampling.unfinished_reward,
    )
    graded = dict(zip(leaves, grades, strict=True))
    of = [questions[node.question] for node in nodes]
    names = [f"{question.id}/{'.'.join(map(str, node.path))}" for question, node in zip(of, nodes, strict=True)]
    columns = {
        "trajectory_id": names,
        "parent_id": [
            name.rpartition(".")[0] if len(node.path) > 1 else None for name, node in zip(names, nodes, strict=True)
        ],
        "question_id": [question.id for question in of],
        "depth": [len(node.path) - 1 for node in nodes],
        "prompt": [question.prompt for question in of],
        "prompt_token_ids": [prompts[node.question] for node in nodes],
        "token_ids": [node.sample.token_ids for node in nodes],
        "logprobs": [node.sample.logprobs for node in nodes],
        "text": decode(sampling.tokenizer, [node.sample.token_ids for node in nodes]),
        "finish_reason": [node.finish_reason for node in nodes],
        "answer": [graded[i].answer if i in graded else None for i in range(len(nodes))],
        "reference": [question.reference for question in of],
        "reward": [graded[i].reward if i in graded else None for i in range(len(nodes))],
    }
    return pa.table(columns, schema=TRAJECTORIES.arrow)


def statistics(trajectories: pa.Table) -> dict[str, float]:
    """What there is to say of trees: reward and length of their whole responses, and how many nodes they have.

    Means are over the leaves, each weighted by the chance of reaching it (`paths.shares`), so they estimate the same as
    the plain means over whole responses, also where responses ended early.

    Args:
      trajectories: trajectory_id, parent_id, question_id, token_ids, finish_reason, reward.
    """
    if not trajectories.num_rows:
        return {}
    parent = parent_rows(trajectories)
    question = encode_names(trajectories["question_id"])
    leaf, depth = tree_structure.is_leaf(parent), tree_structure.depths(parent)
    weight = tree_structure.path_probabilities(parent, question)[leaf]
    reward = trajectories["reward"].to_numpy()[leaf].astype(np.float64)
    length = tree_structure.sum_from_root(
        parent, pc.list_value_length(trajectories["token_ids"]).to_numpy().astype(np.int64)
    )[leaf]
    clipped = pc.equal(trajectories["finish_reason"], "length").to_numpy()[leaf]
    equal = all_equal(reward, question[leaf])
    return {
        "reward": float(weight @ reward) / equal.size,
        "frac_reward_zero_std": float(equal.mean()),
        "completions/mean_length": float(weight @ length) / equal.size,
        "completions/clipped_ratio": float(weight @ clipped) / equal.size,
        "nodes": parent.size,
        "leaves": int(leaf.sum()),
        **{f"leaves/depth_{i}": int(count) for i, count in enumerate(np.bincount(depth[leaf]))},
    }


def parent_rows(trajectories: pa.Table) -> np.ndarray:
    """The row of each row's parent, −1 where it continues the prompt: int64 [N].

    Args:
      trajectories: trajectory_id, parent_id.

    Raises:
      UserError: a parent that is not among the rows.
    """
    ids, parents = (trajectories[name].combine_chunks() for name in ("trajectory_id", "parent_id"))
    row = rows_by_name(parents, ids)
    lost = np.flatnonzero((row < 0) & np.asarray(pc.is_valid(parents)))
    if lost.size:
        index = int(lost[0])
        raise UserError(f"trajectory {ids[index]} continues {parents[index]}, which is not there: a tree must be whole")
    return row


def are_trees(trajectories: Artefact) -> bool:
    """Whether rows are stretches of trees: their lineage says so, or in Parquet from elsewhere a parent_id does."""
    if trajectories.lineage:
        return trajectories.lineage.config.get("tree") is not None
    return any(
        pc.any(pc.is_valid(trajectories.read(part, ["parent_id"])["parent_id"])).as_py()
        for part in trajectories.parts
        if "parent_id" in part.columns
    )
