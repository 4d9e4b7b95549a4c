"""Sample trees of responses level by level, write one row per node, and recover the parents from the rows.

A response branches after every M tokens (arXiv 2505.23564, SPO-tree). One call of the engine samples all children of a
level for the questions of a chunk, so the engine can reuse their shared prefixes. A node that ends its response is a
leaf at any depth; nodes of the last level always run to the end of their response.
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
from stages.maths.trees import node_values, prompt_values
from stages.maths.values import all_equal
from stages.responses.generation import Sampling
from stages.responses.grading import Grade, decode, grade
from stages.responses.signal import without_answer
from stages.sampling.protocol import OnTokens, Request, Sample, Usage
from stages.shards.parts import Artefact
from stages.shards.schemas import TRAJECTORIES
from stages.shards.tables import encode_names, rows_by_name
from stages.tasks import Question


@dataclass(frozen=True)
class TreeNode:
    """One node of a tree: the tokens between two branchings.

    Attributes:
      question: index of its question in the chunk.
      path: the branch taken at each level, its own last.
      key: random key of its sample.
      sample: its own tokens.
      response: int32 [T], the tokens from the end of the prompt to the end of this node.
      finish_reason: "segment" if children continue the response.
      grade: of a leaf that was graded while the tree grew.
    """

    question: int
    path: tuple[int, ...]
    key: int
    sample: Sample
    response: np.ndarray
    finish_reason: Literal["stop", "length", "segment"]
    grade: Grade | None = None


def max_nodes(branches: Sequence[int]) -> int:
    """Return the number of nodes of a tree in which no response ends early: 6 + 36 + 216 for 6-6-6."""
    return sum(accumulate(branches, mul))


def most_tokens(branches: Sequence[int], segment_tokens: int, max_tokens: int) -> int:
    """Return the most tokens that a tree can take: 6 · M + 36 · (T − M) for 6-6, nodes of M tokens and T in all."""
    starts = [min(depth * segment_tokens, max_tokens) for depth in range(len(branches))]
    sizes = [end - start for start, end in zip(starts, [*starts[1:], max_tokens], strict=True)]
    return sum(nodes * size for nodes, size in zip(accumulate(branches, mul), sizes, strict=True))


def answer(
    questions: Sequence[Question],
    prompts: Sequence[np.ndarray],
    sampling: Sampling,
    on_tokens: OnTokens,
    *,
    branches: Sequence[int],
    segment_tokens: int,
) -> tuple[pa.Table, Usage]:
    """Sample a tree of responses to each question, as `sample_trees`.

    Returns:
      Rows of `TRAJECTORIES`, one per node, in pre-order, question by question; `reward` is null at inner nodes, and at
      leaves where the verifier reached no verdict. The tokens that the engine sampled and prefilled.
    """
    nodes, usage = sample_trees(questions, prompts, branches, segment_tokens, sampling, on_tokens)
    return tree_table(nodes, questions, prompts, sampling), usage


def sample_trees(
    questions: Sequence[Question],
    prompts: Sequence[np.ndarray],
    branches: Sequence[int],
    segment_tokens: int,
    sampling: Sampling,
    on_tokens: OnTokens,
) -> tuple[list[TreeNode], Usage]:
    """Sample a tree of responses to each question.

    Branch i of the first level has the random key (seed, "rollout", question, i), the same as response i without a
    tree; branch j of a node with key κ has the key (κ, j). So a tree of one level equals independent responses.

    Args:
      prompts: int32 [P] token ids per question.
      branches: number of children per node, level by level.
      segment_tokens: M, the tokens of a node before its response branches; nodes of the last level have no such limit.
      on_tokens: called with what was done since its last call; nodes count as samples, and those that are never
        sampled because a response ended early count as finished.

    Returns:
      The nodes in pre-order, question by question, and the tokens that the engine sampled and prefilled.
    """
    nodes: list[TreeNode] = []
    sampled = prefilled = distinct = 0
    nothing = np.empty(0, np.int32)
    # The responses to continue: (question, path, random key of the node, response so far).
    level = [(number, (), (*sampling.key, question.id), nothing) for number, question in enumerate(questions)]
    for depth, count in enumerate(branches):
        is_last = depth == len(branches) - 1
        keys = [tuple(random_key(*name, i) for i in range(count)) for *_, name, _ in level]
        requests = []
        for (number, _, _, response), child_keys in zip(level, keys, strict=True):
            left = sampling.max_tokens - response.size
            prefix = np.concatenate([prompts[number], response])
            limit = left if is_last else min(segment_tokens, left)
            requests.append(Request(prefix, child_keys, limit, text_start=prompts[number].size))
        samples, usage = sampling.sampler.sample(requests, sampling.params, on_tokens, remember=not is_last)
        sampled, prefilled = sampled + usage.sampled, prefilled + usage.prefilled
        distinct += usage.distinct_prefix_tokens
        found = []
        for (number, path, _, before), child_keys, children in zip(level, keys, samples, strict=True):
            for i, (key, sample) in enumerate(zip(child_keys, children, strict=True)):
                response = np.concatenate([before, sample.token_ids])
                limit = min(sampling.max_tokens, sampling.sampler.context_length - prompts[number].size)
                # "length" means that the node reached its M tokens, unless the whole response reached its own limit.
                continues = sample.finish_reason == "length" and not is_last and response.size < limit
                reason = "segment" if continues else sample.finish_reason
                found.append(TreeNode(number, (*path, i), key, sample, response, reason))
        level = [(n.question, n.path, (n.key,), n.response) for n in found if n.finish_reason == "segment"]
        on_tokens((len(found) - len(level)) * max_nodes(branches[depth + 1 :]), 0)  # nodes that are never sampled
        nodes += found
    return sorted(nodes, key=lambda node: (node.question, node.path)), Usage(sampled, prefilled, distinct)


def tree_table(
    nodes: Sequence[TreeNode], questions: Sequence[Question], prompts: Sequence[np.ndarray], sampling: Sampling
) -> pa.Table:
    """Return one row of `TRAJECTORIES` per node, with the leaves graded on their whole responses."""
    graded = {i: node.grade for i, node in enumerate(nodes) if node.grade}
    leaves = [i for i, node in enumerate(nodes) if node.finish_reason != "segment" and i not in graded]
    grades = grade(
        sampling.tokenizer,
        sampling.task,
        [nodes[i].response for i in leaves],
        [nodes[i].finish_reason for i in leaves],
        [questions[nodes[i].question].reference for i in leaves],
        sampling.unfinished_reward,
        sampling.penalty,
    )
    graded |= zip(leaves, grades, strict=True)
    node_questions = [questions[node.question] for node in nodes]
    names = [
        f"{question.id}/{'.'.join(map(str, node.path))}" for question, node in zip(node_questions, nodes, strict=True)
    ]
    columns = {
        "trajectory_id": names,
        "parent_id": [
            name.rpartition(".")[0] if len(node.path) > 1 else None for name, node in zip(names, nodes, strict=True)
        ],
        "question_id": [question.id for question in node_questions],
        "depth": [len(node.path) - 1 for node in nodes],
        "prompt": [question.prompt for question in node_questions],
        "prompt_token_ids": [prompts[node.question] for node in nodes],
        "token_ids": [node.sample.token_ids for node in nodes],
        "logprobs": [node.sample.logprobs for node in nodes],
        "text": decode(sampling.tokenizer, [node.sample.token_ids for node in nodes]),
        "finish_reason": [node.finish_reason for node in nodes],
        "answer": [graded[i].answer if i in graded else None for i in range(len(nodes))],
        "reference": [question.reference for question in node_questions],
        "reward": [graded[i].reward if i in graded else None for i in range(len(nodes))],
    }
    return pa.table(columns, schema=TRAJECTORIES.arrow)


def statistics(trajectories: pa.Table) -> dict[str, float]:
    """Return mean reward and length of the responses in trees, and the number of nodes and leaves.

    A mean over the leaves of a tree weights each leaf by the probability of reaching it from the prompt
    (`tree_structure.path_probabilities`). So it estimates the same quantity as the plain mean over independent
    responses, even if some responses ended early. The mean reward is V of the prompts, which leaves out the leaves that
    could not be graded.

    Args:
      trajectories: columns trajectory_id, parent_id, question_id, token_ids, finish_reason, answer, reward.

    Returns:
      Statistics by name; empty for an empty table.
    """
    if not trajectories.num_rows:
        return {}
    parent = parent_rows(trajectories)
    question = encode_names(trajectories["question_id"])
    leaf, depth = tree_structure.is_leaf(parent), tree_structure.depths(parent)
    weight = tree_structure.path_probabilities(parent, question)[leaf]
    reward = trajectories["reward"].to_numpy().astype(np.float64)
    length = tree_structure.sum_from_root(
        parent, pc.list_value_length(trajectories["token_ids"]).to_numpy().astype(np.int64)
    )[leaf]
    clipped = pc.equal(trajectories["finish_reason"], "length").to_numpy()[leaf]
    equal = all_equal(reward[leaf], question[leaf])
    values = prompt_values(parent, question, node_values(parent, reward))
    return {
        **({} if np.isnan(values).all() else {"reward": float(np.nanmean(values))}),
        "frac_reward_zero_std": float(equal.mean()),
        "completions/mean_length": float(weight @ length) / equal.size,
        "completions/no_answer_ratio": float(weight @ without_answer(trajectories)[leaf]) / equal.size,
        "completions/clipped_ratio": float(weight @ clipped) / equal.size,
        "nodes": parent.size,
        "leaves": int(leaf.sum()),
        **{f"leaves/depth_{i}": int(count) for i, count in enumerate(np.bincount(depth[leaf]))},
    }


def parent_rows(trajectories: pa.Table) -> np.ndarray:
    """Return the row of each row's parent, int64 [N]; −1 for a row that continues the prompt.

    Args:
      trajectories: columns trajectory_id and parent_id.

    Raises:
      UserError: a parent is not among the rows.
    """
    ids, parents = (trajectories[name].combine_chunks() for name in ("trajectory_id", "parent_id"))
    row = rows_by_name(parents, ids)
    missing = np.flatnonzero((row < 0) & np.asarray(pc.is_valid(parents)))
    if missing.size:
        index = int(missing[0])
        raise UserError(
            f"trajectory {ids[index]} continues {parents[index]}, which is missing; expected every node of its tree"
        )
    return row


def are_trees(trajectories: Artefact) -> bool:
    """Return whether rows are nodes of trees: by their lineage, or without one by any parent_id that is not null."""
    if trajectories.lineage:
        config = trajectories.lineage.config
        return config.get("tree") is not None or config.get("tree_budget") is not None
    return any(
        pc.any(pc.is_valid(trajectories.read(part, ["parent_id"])["parent_id"])).as_py()
        for part in trajectories.parts
        if "parent_id" in part.columns
    )
