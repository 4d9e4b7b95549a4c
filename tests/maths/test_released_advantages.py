"""Compare cutpoints, advantages and tree values with the released code; `tests/golden/README.md` describes the numbers.

Each deviation is asserted: our number differs, and the released one follows from ours by the quirk that is named.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from stages.maths.advantages import chain_advantages, grpo, rloo, sibling_advantages, states_to_estimate
from stages.maths.partition import (
    find_cutpoints,
    partition_at_boundaries,
    partition_by_count,
    partition_by_cutpoints,
    segment_cutpoints,
)
from stages.maths.ragged import Ragged
from stages.maths.trees import node_values, start_states
from stages.maths.values import best_of_n_values
from tests.golden import assert_close, load_golden

RHO = 0.9

# Cutpoints and chain advantages


def test_cutpoints_and_advantages():
    by_interval = defaultdict(list)
    for case in load_golden("mc_advantages.json")["cases"]:
        if not case["inputs"].get("direct"):
            by_interval[case["inputs"]["cutpoint_interval"]].append(case)
    for interval, cases in by_interval.items():
        check_batch(cases, interval)
    assert len(by_interval) > 1


def check_batch(cases: list[dict[str, Any]], interval: int) -> None:
    """Compare all cases of one interval as one ragged batch."""
    logprobs = Ragged.of(
        [case["inputs"]["shifted_logprobs"][case["inputs"]["query_len"] - 1 :] for case in cases], np.float64
    )
    is_cutpoint = find_cutpoints(logprobs, RHO)
    segments = partition_by_cutpoints(logprobs.lengths, is_cutpoint, interval)
    needs_value = states_to_estimate(segments.start, segment_cutpoints(segments, logprobs.lengths, is_cutpoint))
    values = np.full(len(segments), np.nan)
    for i, case in enumerate(cases):
        own = needs_value & (segments.trajectory == i)
        # The released index is the token before the improbable one; ours is the first token of the segment.
        assert (segments.start[own] - 1).tolist() == case["outputs"]["cutpoints"], case["name"]
        values[own] = case["inputs"]["cutpoint_values"]

    result = chain_advantages(segments, values, [case["inputs"]["score"] for case in cases], needs_value)
    per_token = np.repeat(result.advantage, segments.end - segments.start) * is_cutpoint
    per_token = Ragged(per_token, logprobs.offsets)
    for i, case in enumerate(cases):
        assert_close(np.exp(logprobs[i]), case["outputs"]["response_probs"], case)
        assert_close(per_token[i], case["outputs"]["advantages"], case)
        own = segments.trajectory == i
        at_ends = [case["outputs"]["token_values"][end - 1] for end in segments.end[own]]
        assert_close(result.value_end[own], at_ends, case)


def test_a_token_with_probability_rho_is_not_a_cutpoint():
    """Deviation: the released code zeroes advantages of tokens with p > 0.9 only, so that p = 0.9 has an advantage."""
    for case in load_golden("mc_advantages.json")["cases"]:
        inputs, released = case["inputs"], np.array(case["outputs"]["advantages"])
        if not inputs.get("direct"):
            continue
        probabilities = np.array(inputs["response_probs"])
        is_cutpoint = find_cutpoints(Ragged.of([np.log(probabilities)], np.float64), RHO)
        starts = Ragged.of([[index + 1 for index in inputs["cutpoints"]]], np.int64)
        segments = partition_at_boundaries([probabilities.size], starts)
        values = np.array(inputs["cutpoint_values"])
        if len(segments) > values.size:
            values = np.concatenate([[np.nan], values])
        result = chain_advantages(segments, values, [inputs["score"]], ~np.isnan(values))
        per_token = np.repeat(result.advantage, segments.end - segments.start)
        assert_close(per_token * (probabilities <= RHO), released, case)  # the segments agree
        assert_close(per_token * is_cutpoint, np.where(probabilities < RHO, released, 0.0), case)


def test_partition_by_count():
    for case in load_golden("mc_advantages.json")["meta"]["naive_partition"]["cases"]:
        tokens, ours = case["num_tokens"], partition_by_count([case["num_tokens"]], case["num_segments"])
        # The released code keeps empty segments (repeated boundaries, or boundaries at an end); ours has none.
        released = sorted({index + 1 for index in case["cutpoints"]} - {0, tokens})
        assert ours.start[1:].tolist() == released, case


# Groups


def test_group_advantages():
    for case in load_golden("group_advantages.json")["cases"]:
        scores, groups = case["inputs"]["scores"], case["inputs"]["group_ids"]
        assert_close(grpo(scores, groups).advantage, case["outputs"]["grpo"], case)
        # Deviation: the released code trains the only response of a group on its own reward; ours does not.
        alone = np.array([groups.count(group) == 1 for group in groups], np.bool_)
        ours, released = rloo(scores, groups).advantage, np.array(case["outputs"]["rloo"])
        assert_close(ours[~alone], released[~alone], case)
        assert not ours[alone].any()
        assert released[alone].tolist() == np.array(scores)[alone].tolist()


# Trees


def flat_tree(tree: dict[str, Any]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return name, parent row and leaf reward (NaN for inner nodes) of every node except the root, in pre-order."""
    names: list[str] = []
    parents: list[int] = []
    rewards: list[float] = []

    def add(node: dict[str, Any], parent: int) -> None:
        for child in node["children"]:
            names.append(child["id"])
            parents.append(parent)
            rewards.append(child.get("leaf_reward", np.nan))
            if "children" in child:
                add(child, len(names) - 1)

    add(tree, -1)
    return names, np.array(parents, np.int64), np.array(rewards)


def test_tree_values_and_advantages():
    """The released `rloo` is the difference to the mean of all siblings; `grpo` divides it by their std."""
    dropped = refused = 0
    for case in load_golden("tree.json")["cases"]:
        names, parent, reward = flat_tree(case["inputs"]["tree"])
        value, state = node_values(parent, reward), start_states(parent, np.zeros(parent.size, np.int64))
        released = case["outputs"]
        assert_close(value, [released["node_stats"][name]["reward"] for name in names], case)
        for method, scale in (("rloo", False), ("grpo", True)):
            edges = {edge["node"]: edge for edge in released["edges"][f"{method}_all"]}
            ours = sibling_advantages(value, state, scale=scale)
            assert_close(ours.value_end, [edges[name]["value"] for name in names], case)
            assert_close(ours.advantage, [edges[name]["advantage"] for name in names], case)
            bonus = [edges[name]["prover_advantage"] for name in names]
            if np.all((value >= 0) & (value <= 1)):
                assert_close(
                    best_of_n_values(ours.value_end, 4) - best_of_n_values(ours.value_start.clip(0, 1), 4), bonus, case
                )
            else:  # deviation: ours refuses values that are not probabilities
                with pytest.raises(ValueError, match="probabilities"):
                    best_of_n_values(ours.value_end, 4)
                assert_close((1 - ours.value_start) ** 4 - (1 - ours.value_end) ** 4, bonus, case)
                refused += 1
            # Deviation: ours ignores advantages up to 1e-8; the released code keeps rounding errors as non-zero.
            kept = {name for name, a in zip(names, ours.advantage, strict=True) if abs(a) > 1e-8}
            residues = {edge["node"] for edge in released["edges"][f"{method}_nonzero_only"]} - kept
            assert kept <= {edge["node"] for edge in released["edges"][f"{method}_nonzero_only"]}, case["name"]
            values = dict(zip(names, ours.value_end - ours.value_start, strict=True))
            assert all(abs(values[name]) < 1e-15 for name in residues), case["name"]
            dropped += len(residues)
    assert dropped
    assert refused
