"""Give the same responses the advantages of GRPO, SPO-chain and SPO-tree, and what each method samples for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from stages.configs.audit import Config
from stages.core.progress import Progress
from stages.models import checkpoints, devices, loading
from stages.reporting.audit_gradients import WeightedResponse, gradient_rows
from stages.responses.trees import are_trees
from stages.shards.origin import sampling_model
from stages.shards.parts import Artefact

CHAIN_ROLLOUTS = 4
"""Rollouts of a state with which SPO-chain is computed for the paths of trees."""
GRPO, CHAIN, TREE, PREFIX_TREE = "GRPO", "SPO-chain", "SPO-tree", "SPO-tree of shared prefixes"


class ValuedSegment(NamedTuple):
    """A segment of an audited response.

    Attributes:
      name, start, end: the response, and the tokens of the segment.
      recorded: value_end − value_start of the audited artefact.
      chain: the same from independent rollouts; that of the artefact if it is a chain.
    """

    name: str
    start: int
    end: int
    recorded: float
    chain: float


@dataclass(frozen=True)
class Sources:
    """The artefacts of an audit.

    Attributes:
      sampled: the trajectories of the advantages: responses, or nodes of trees.
      responses: whole responses; of trees, paths to leaves.
    """

    advantages: Artefact
    sampled: Artefact
    responses: Artefact
    reference: Artefact

    @property
    def are_trees(self) -> bool:
        """Whether the advantages are of trees."""
        return are_trees(self.sampled)


def compare(config: Config, segments: Sequence[ValuedSegment], sources: Sources, progress: Progress) -> pa.Table:
    """Return the gradient norms of the audited responses under each method (`audit_gradients.SCHEMA`).

    Advantages are in the units of the reward. GRPO is without its division by the deviation, which would give each
    question another scale. Of independent responses, the tree is the one of the prefixes that a group shares.
    """
    devices.use_threads(config.threads)
    name = config.model or sampling_model(sources.sampled)
    assert name is not None, "the estimate that went before needs a model, too"
    model = loading.load_model(checkpoints.resolve(name), devices.pick_device(config.device), torch.float32)
    rows = sources.responses.read_all(["trajectory_id", "question_id", "prompt_token_ids", "token_ids", "reward"])
    table = {row["trajectory_id"]: row for row in rows.to_pylist()}
    names = list(dict.fromkeys(one.name for one in segments))[: config.gradients]
    groups = _groups(sources)
    weighted = [
        WeightedResponse(
            one,
            np.array([*table[one]["prompt_token_ids"], *table[one]["token_ids"]], np.int64),
            _advantages(table[one], [part for part in segments if part.name == one], groups, sources.are_trees),
        )
        for one in names
    ]
    lineage = sources.sampled.lineage
    temperature = float(lineage.config.get("temperature") or 1.0) if lineage else 1.0
    return gradient_rows(model, weighted, _tokens(sources, segments, table), temperature, progress)


def _groups(sources: Sources) -> dict[str, list[tuple[list[int], float]]]:
    """Return the tokens and rewards of the graded responses to each question; of trees, the rewards of the leaves."""
    rows = sources.sampled.read_all(["question_id", "token_ids", "reward"]).to_pylist()
    groups: dict[str, list[tuple[list[int], float]]] = {}
    for row in rows:
        if row["reward"] is not None:  # inner nodes of trees have none
            groups.setdefault(row["question_id"], []).append((row["token_ids"], row["reward"]))
    return groups


def _advantages(
    row: dict[str, Any],
    segments: Sequence[ValuedSegment],
    groups: dict[str, list[tuple[list[int], float]]],
    are_trees: bool,
) -> dict[str, NDArray[np.float64]]:
    """Return the advantage of each token of a response under each method."""
    group, length = groups[row["question_id"]], len(row["token_ids"])
    grpo = np.full(length, row["reward"] - np.mean([reward for _, reward in group]))
    chain, tree = np.zeros(length), np.zeros(length)
    for one in segments:
        chain[one.start : one.end] = one.chain
        tree[one.start : one.end] = one.recorded if are_trees else _prefix_advantage(row, one, group)
    return {GRPO: grpo, CHAIN: chain, TREE if are_trees else PREFIX_TREE: tree}


def _prefix_advantage(row: dict[str, Any], one: ValuedSegment, group: list[tuple[list[int], float]]) -> float:
    """Return the change of the mean reward of the responses that share the tokens up to the ends of a segment."""
    own = row["token_ids"]

    def value(length: int) -> float:
        return float(np.mean([reward for tokens, reward in group if tokens[:length] == own[:length]]))

    return (row["reward"] if one.end == len(own) else value(one.end)) - value(one.start)


def _tokens(
    sources: Sources, segments: Sequence[ValuedSegment], responses: dict[str, dict[str, Any]]
) -> dict[str, float]:
    """Return the tokens that each method samples per response; NaN if a file of another tool does not record it."""
    names = {one.name for one in segments}
    length = float(np.mean([len(responses[name]["token_ids"]) for name in names]))
    if not sources.are_trees:
        spent = _count(sources.advantages, "sampled") / sources.sampled.rows
        return {GRPO: length, CHAIN: length + spent, PREFIX_TREE: length}
    rollout = _count(sources.reference, "sampled") / max(_count(sources.reference, "rollouts"), 1.0)
    states = len(segments) / len(names)
    rows = sources.sampled.read_all(["token_ids", "reward"])
    leaves = len(rows) - rows["reward"].null_count
    in_trees = sum(len(one) for one in rows["token_ids"].to_pylist())
    return {GRPO: length, CHAIN: length + CHAIN_ROLLOUTS * states * rollout, TREE: in_trees / max(leaves, 1)}


def _count(artefact: Artefact, name: str) -> float:
    """Return a count that all parts record, or NaN."""
    counts = [part.lineage.counts.get(name) if part.lineage else None for part in artefact.parts]
    return float("nan") if None in counts else float(sum(one for one in counts if one is not None))
