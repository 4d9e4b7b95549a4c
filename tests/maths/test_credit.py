"""Credit rules on trees: worked by hand, one-level trees are the group methods, and numbers of TreePO's code."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.maths.advantages import dr_grpo, grpo
from stages.maths.credit import Rule, credit, leaf_means
from tests.golden import assert_close, load_golden

# Question 0: node 0 with the leaves 1, 2, 3, and the leaf 4. Rewards 1, 1, 0 below node 0; 0 beside it.
PARENT = np.array([-1, 0, 0, 0, -1])
TREE = np.zeros(5, np.int64)
REWARD = np.array([np.nan, 1.0, 1.0, 0.0, 0.0])
ROOT3 = 3**0.5


def test_values_are_means_over_leaves():
    end, start = leaf_means(PARENT, TREE, REWARD)
    np.testing.assert_allclose(end, [2 / 3, 1, 1, 0, 0])
    np.testing.assert_allclose(start, [1 / 2, 2 / 3, 2 / 3, 2 / 3, 1 / 2])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # V(root) = 1/2, V(0) = 2/3; node 0 has three leaves.
        ("treerl", [(1 / 6 + 1 / 6) / ROOT3, 1 / 2 + 1 / 3, 1 / 2 + 1 / 3, -1 / 2 - 2 / 3, -1 / 2 - 1 / 2]),
        # Leaves 1 to 3 are compared with the means 1/2 and 2/3, leaf 4 with 1/2.
        ("treepo", [1 / 12, 5 / 12, 5 / 12, -7 / 12, -1 / 2]),
        # σ of (1, 1, 0, 0) is 1/2.
        ("treeadv", [1 / 3, 1, 1, -1, -1]),
        # Within the tree of node 0: mean 2/3, σ = √2 / 3. A leaf alone in its tree adds 0.
        ("tree-grpo", [1 / 3, 1 + 1 / 2**0.5, 1 + 1 / 2**0.5, -1 - 2**0.5, -1]),
    ],
)
def test_the_rules_worked_by_hand(rule: Rule, expected: list[float]):
    np.testing.assert_allclose(credit(rule, PARENT, TREE, REWARD), expected, atol=1e-6)


REWARDS = st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=1, max_size=8)


@given(st.lists(REWARDS, min_size=1, max_size=3))
def test_one_level_trees_are_the_group_method_under_every_rule(questions: list[list[float]]):
    reward = np.concatenate(questions)
    tree = np.repeat(np.arange(len(questions)), [len(one) for one in questions])
    parent = np.full(reward.size, -1)
    deviation, scaled = dr_grpo(reward, tree).advantage, grpo(reward, tree).advantage
    expected = {"treerl": 2 * deviation, "treepo": deviation, "treeadv": scaled, "tree-grpo": scaled}
    for rule in get_args(Rule):
        np.testing.assert_allclose(credit(rule, parent, tree, reward), expected[rule], atol=1e-12)


@pytest.mark.parametrize("rule", get_args(Rule))
def test_questions_do_not_mix_and_the_order_of_rows_does_not_matter(rule: Rule):
    parent = np.concatenate([PARENT, np.where(PARENT < 0, -1, PARENT + 5)])
    tree, reward = np.repeat([0, 1], 5), np.concatenate([REWARD, 1 - REWARD])
    found = credit(rule, parent, tree, reward)
    np.testing.assert_allclose(found[:5], credit(rule, PARENT, TREE, REWARD))
    order = np.random.default_rng(0).permutation(10)
    position = np.argsort(order)
    turned = np.where(parent < 0, -1, position[parent])[order]
    np.testing.assert_allclose(credit(rule, turned, tree[order], reward[order]), found[order])


@pytest.mark.parametrize("rule", get_args(Rule))
def test_an_ungradable_leaf_is_in_no_mean_and_has_no_advantage(rule: Rule):
    parent = np.append(PARENT, 0)
    found = credit(rule, parent, np.zeros(6, np.int64), np.append(REWARD, np.nan))
    assert np.isnan(found[5])
    np.testing.assert_allclose(found[:5], credit(rule, PARENT, TREE, REWARD))


@pytest.mark.parametrize("case", load_golden("tree_credit.json")["cases"], ids=lambda case: case["name"])
def test_treepo_agrees_with_its_released_code(case: dict[str, Any]):
    """The released numbers are of leaves; every leaf of a case has the same depth."""
    paths = [path.split("#") for path in case["inputs"]["leaves"]]
    rows: dict[tuple[str, ...], int] = {}
    parent = []
    for path in paths:
        for end in range(2, len(path) + 1):
            if tuple(path[:end]) not in rows:
                rows[tuple(path[:end])] = len(parent)
                parent.append(rows[tuple(path[: end - 1])] if end > 2 else -1)
    reward = np.full(len(parent), np.nan)
    leaf = [rows[tuple(path)] for path in paths]
    reward[leaf] = case["inputs"]["rewards"]
    found = credit("treepo", np.array(parent), np.zeros(len(parent), np.int64), reward)
    assert_close(found[leaf], case["outputs"]["average"], case)


@pytest.mark.parametrize("case", load_golden("attnrl_trees.json")["cases"], ids=lambda case: case["name"])
def test_treerl_agrees_with_the_released_code_of_attnrl_on_trees_from_first_chains(case: dict[str, Any]):
    """AttnRL takes TreeRL's rule; its trees branch at tokens of whole responses, so nodes have unequal lengths."""
    parent = np.array(case["inputs"]["parent"])
    reward = np.array([np.nan if one is None else one for one in case["inputs"]["reward"]])
    tree = np.zeros(parent.size, np.int64)
    assert_close(credit("treerl", parent, tree, reward), case["outputs"]["advantage"], case)
    end, start = leaf_means(parent, tree, reward)
    assert_close(end - start, case["outputs"]["local"], case)
