"""Tree structure: depths, leaves, sums along paths and path probabilities, by hand and for random trees."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.errors import UserError
from stages.maths.tree_structure import depths, is_leaf, path_probabilities, sum_from_root

# Two questions. 0: roots a (children c, d; d has child e) and b. 1: root f.
#                   a   b  c  d  e   f
PARENT = np.array([-1, -1, 0, 0, 3, -1])
TREE = np.array([0, 0, 0, 0, 0, 1])


def test_depths_leaves_lengths_and_probabilities_by_hand():
    assert depths(PARENT).tolist() == [0, 0, 1, 1, 2, 0]
    assert is_leaf(PARENT).tolist() == [False, True, True, False, True, True]
    assert sum_from_root(PARENT, [1, 2, 3, 4, 5, 6]).tolist() == [1, 2, 4, 5, 10, 6]
    assert path_probabilities(PARENT, TREE).tolist() == [1 / 2, 1 / 2, 1 / 4, 1 / 4, 1 / 4, 1]


def test_no_nodes():
    empty = np.empty(0, np.int64)
    assert (
        depths(empty).size
        == is_leaf(empty).size
        == sum_from_root(empty, []).size
        == path_probabilities(empty, empty).size
        == 0
    )


def test_a_cycle_is_refused():
    with pytest.raises(UserError, match="cycle: no path leads from row 1"):
        depths(np.array([-1, 2, 1]))


parent_lists = st.integers(1, 12).flatmap(lambda n: st.tuples(*(st.integers(-1, i - 1) for i in range(n))))


@given(parent_lists, st.randoms())
def test_a_path_probability_is_the_weight_of_a_leaf_in_the_value_of_the_prompt(parents, random):
    parent = np.array(parents)
    tree = np.zeros(parent.size, np.int64)
    leaf = is_leaf(parent)
    reward = np.where(leaf, [random.choice([0.0, 1.0]) for _ in parents], np.nan)

    def value(node: int) -> float:
        below = [value(i) for i in range(parent.size) if parent[i] == node]
        return float(np.mean(below)) if below else float(reward[node])

    probability = path_probabilities(parent, tree)
    assert probability[leaf].sum() == pytest.approx(1)
    assert probability[leaf] @ reward[leaf] == pytest.approx(value(-1))

    order = np.array(random.sample(range(parent.size), parent.size))
    place = np.argsort(order)
    shuffled = np.where(parent[order] < 0, -1, place[parent[order]])
    assert path_probabilities(shuffled, tree).tolist() == pytest.approx(probability[order].tolist())
    assert sum_from_root(shuffled, order).tolist() == sum_from_root(parent, np.arange(parent.size))[order].tolist()
