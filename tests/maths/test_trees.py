"""Values of trees: numbers worked by hand, telescoping along paths, and trees of one level as group methods."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.errors import UserError
from stages.maths.advantages import dr_grpo, grpo, rloo, sibling_advantages
from stages.maths.tree_structure import is_leaf
from stages.maths.trees import leaves_below, node_values, preorder, prompt_values, start_states

NAN = float("nan")
#   0 ── 1 (R 1), 2 (R 0)
#   3 (R 1)                       the children of the prompt are 0 and 3
PARENT = np.array([-1, 0, 0, -1])
REWARD = np.array([NAN, 1.0, 0.0, 1.0])
ONE_TREE = np.zeros(4, np.int64)


def test_two_levels_by_hand():
    value = node_values(PARENT, REWARD)
    assert value.tolist() == [0.5, 1, 0, 1]
    found = sibling_advantages(value, start_states(PARENT, ONE_TREE))
    assert found.value_start.tolist() == [0.75, 0.5, 0.5, 0.75]
    assert found.advantage.tolist() == [-0.25, 0.5, -0.5, 0.25]


def test_leave_one_out_by_hand():
    found = sibling_advantages(node_values(PARENT, REWARD), start_states(PARENT, ONE_TREE), baseline="leave-one-out")
    assert found.value_start.tolist() == [1, 0, 1, 0.5]  # the value of the only sibling
    assert found.advantage.tolist() == [-0.5, 1, -1, 0.5]


@pytest.mark.parametrize("baseline", ["mean", "leave-one-out"])
def test_an_only_child_has_nothing_to_be_compared_with(baseline):
    parent, tree = np.array([-1, 0, 0]), np.zeros(3, np.int64)
    found = sibling_advantages(node_values(parent, [NAN, 1, 0]), start_states(parent, tree), baseline=baseline)
    assert (found.value_start[0], found.advantage[0]) == (0.5, 0)


def test_a_leaf_that_could_not_be_graded_is_left_out_of_every_mean():
    #   0 ── 1 (R 1), 2 (unknown), 3 (R 0)
    #   4 ── 5 (unknown), 6 (unknown)
    #   7 (R 1)
    parent, tree = np.array([-1, 0, 0, 0, -1, 4, 4, -1]), np.zeros(8, np.int64)
    reward = [NAN, 1, NAN, 0, NAN, NAN, NAN, 1]
    value = node_values(parent, reward)
    np.testing.assert_array_equal(value, [0.5, 1, NAN, 0, NAN, NAN, NAN, 1])
    assert prompt_values(parent, tree, value).tolist() == [0.75], "the mean of nodes 0 and 7"
    found = sibling_advantages(value, start_states(parent, tree))
    np.testing.assert_array_equal(found.advantage, [-0.25, 0.5, NAN, -0.5, NAN, NAN, NAN, 0.25])
    first, count = leaves_below(parent, tree, ~np.isnan(np.array(reward)))
    # graded leaves: rows 1, 3, 7; all are below the prompt, the first two below node 0, none below node 4
    assert count.tolist() == [3, 2, 2, 2, 3, 0, 0, 3]
    assert first[count > 0].tolist() == [0] * 6


def test_a_prompt_without_a_graded_leaf_has_no_value():
    parent, tree = np.array([-1, -1, -1]), np.array([0, 1, 1])
    np.testing.assert_array_equal(prompt_values(parent, tree, node_values(parent, [NAN, 1, 0])), [NAN, 0.5])


def test_scaling_divides_by_the_standard_deviation_of_the_siblings():
    found = sibling_advantages(node_values(PARENT, REWARD), start_states(PARENT, ONE_TREE), scale=True)
    np.testing.assert_allclose(
        found.advantage, [-1, 1, -1, 1], atol=1e-6
    )  # each of two siblings is one std from their mean
    assert found.value_start.tolist() == [0.75, 0.5, 0.5, 0.75], "values are not scaled"


def test_rounding_errors_are_not_scaled_up():
    assert sibling_advantages([0.8, 0.8000000000000002], [0, 0], scale=True).advantage.tolist() == [0, 0]


def test_values_of_equal_leaves_are_exact():
    parent = np.array([-1] + [0] * 7)
    assert node_values(parent, [NAN] + [0.1] * 7)[0] == 0.1


def test_two_trees_in_any_order_are_sorted_to_pre_order():
    #             a0   b0   a00  a1   b00  a01
    parent = np.array([-1, -1, 0, -1, 1, 0])
    tree = np.array([0, 1, 0, 0, 1, 0])
    assert preorder(parent, tree, np.arange(6)).tolist() == [0, 2, 5, 3, 1, 4]
    assert preorder(parent, tree, -np.arange(6)).tolist() == [3, 0, 5, 2, 1, 4], "siblings are sorted by rank"


def test_the_leaves_below_the_start_state_of_each_node():
    first, count = leaves_below(PARENT, ONE_TREE, is_leaf(PARENT))
    # leaves: rows 1, 2, 3; all are below the prompt, the first two below node 0
    assert first.tolist() == [0, 0, 0, 0]
    assert count.tolist() == [3, 2, 2, 3]


def test_no_trees():
    empty = np.empty(0, np.int64)
    assert node_values(empty, []).size == preorder(empty, empty, []).size == 0
    assert leaves_below(empty, empty, is_leaf(empty))[0].size == 0


def test_an_infinite_reward_and_a_cycle_are_refused():
    with pytest.raises(ValueError, match="leaf"):
        node_values(PARENT, [NAN, np.inf, 0, 1])
    with pytest.raises(UserError, match="cycle"):
        node_values(np.array([1, 0]), [1, 1])


@st.composite
def forests(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw parent, tree and reward of some trees with rows in any order."""
    count = draw(st.integers(1, 14))
    parent = [draw(st.integers(-1, i - 1)) for i in range(count)]
    tree: list[int] = []
    for above in parent:
        tree.append(draw(st.integers(0, 2)) if above < 0 else tree[above])
    place = np.array(draw(st.permutations(range(count))))
    shuffled_parent, shuffled_tree = np.empty(count, np.int64), np.empty(count, np.int64)
    for i, above in enumerate(parent):
        shuffled_parent[place[i]] = -1 if above < 0 else place[above]
        shuffled_tree[place[i]] = tree[i]
    reward = np.array(draw(st.lists(st.floats(-2, 2), min_size=count, max_size=count)))
    return shuffled_parent, np.unique(shuffled_tree, return_inverse=True)[1], reward


def path_to(parent: np.ndarray, node: int) -> list[int]:
    rows = [node]
    while parent[rows[-1]] >= 0:
        rows.append(int(parent[rows[-1]]))
    return rows[::-1]


@given(forests())
def test_advantages_telescope_along_every_path(forest):
    parent, tree, reward = forest
    found = sibling_advantages(node_values(parent, reward), start_states(parent, tree))
    for leaf in set(range(parent.size)) - set(parent.tolist()):
        rows = path_to(parent, leaf)
        np.testing.assert_allclose(found.advantage[rows].sum(), reward[leaf] - found.value_start[rows[0]], atol=1e-12)


@given(forests())
def test_in_pre_order_the_leaves_below_a_state_are_contiguous(forest):
    parent, tree, reward = forest
    order = preorder(parent, tree, np.arange(parent.size))
    assert sorted(order.tolist()) == list(range(parent.size))
    place = np.argsort(order)
    parent, tree, reward = np.where(parent < 0, -1, place[parent])[order], tree[order], reward[order]
    assert np.all(parent < np.arange(parent.size))
    assert np.all(np.diff(tree) >= 0)
    leaves = [row for row in range(parent.size) if row not in parent]
    first, count = leaves_below(parent, tree, is_leaf(parent))
    state = start_states(parent, tree)
    for row in range(parent.size):
        below = [leaf for leaf in leaves if state[row] in state[path_to(parent, leaf)]]
        assert leaves[first[row] : first[row] + count[row]] == below


@given(forests(), st.randoms())
def test_permuting_rows_permutes_the_values(forest, random):
    parent, _, reward = forest
    order = list(range(parent.size))
    random.shuffle(order)
    place = np.argsort(order)
    moved = np.where(parent < 0, -1, place[parent])[order]
    np.testing.assert_allclose(node_values(moved, reward[order]), node_values(parent, reward)[order], atol=1e-12)


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-2, 2)), min_size=1, max_size=20))
def test_a_tree_of_one_level_equals_the_group_method(members):
    tree, reward = np.array([g for g, _ in members]), np.array([r for _, r in members])
    parent = np.full(tree.size, -1)
    value, state = node_values(parent, reward), start_states(parent, tree)
    pairs = (
        (sibling_advantages(value, state), dr_grpo),
        (sibling_advantages(value, state, scale=True), grpo),
        (sibling_advantages(value, state, baseline="leave-one-out"), rloo),
    )
    for found, method in pairs:
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(found, method(reward, tree), strict=True))
