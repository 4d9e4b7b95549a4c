"""The trie of prefixes: every distinct token is computed once, from what is already there."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages.sampling.prefix_tree import build_nodes, build_paths, split_windows

PREFIXES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=14)


def arrays(prefixes: list[list[int]]) -> dict[int, np.ndarray]:
    return {i: np.array(prefix, np.int32) for i, prefix in enumerate(prefixes)}


def test_nested_states_of_one_trajectory_are_positions_of_one_path() -> None:
    found, distinct = build_paths(arrays([[1, 2, 3, 4], [1, 2], [1, 2, 3, 4], [1, 2, 9]]))
    assert [path.token_ids.tolist() for path in found] == [[1, 2, 3, 4], [1, 2, 9]]
    assert [path.shared for path in found] == [0, 2]
    assert [(state.length, state.requests) for state in found[0].states] == [(2, [1]), (4, [0, 2])]
    assert distinct == 5


@given(PREFIXES)
def test_paths_compute_each_distinct_token_once_and_hold_every_request(prefixes: list[list[int]]) -> None:
    found, distinct = build_paths(arrays(prefixes))
    nodes = {tuple(prefix[: i + 1]) for prefix in prefixes for i in range(len(prefix))}
    assert distinct == len(nodes) == sum(len(path.token_ids) - path.shared for path in found)
    served = {}
    for path in found:
        for state in path.states:
            assert path.shared < state.length <= len(path.token_ids)
            served |= {request: path.token_ids[: state.length].tolist() for request in state.requests}
    assert served == dict(enumerate(prefixes))


@given(PREFIXES, st.integers(1, 5))
def test_windows_copy_only_what_has_been_computed(prefixes: list[list[int]], capacity: int) -> None:
    """Plays the prefill with token ids in place of keys and values, level by level, for any size of the store."""
    found, _ = build_paths(arrays(prefixes))
    store: dict[int, list[int]] = {0: []}
    seen = 0
    for window in split_windows(found, capacity):
        for level in window.levels:
            before = {row: list(held) for row, held in store.items()}
            rows = [edge.row for edge in level]
            assert rows == list(range(rows[0], rows[0] + len(rows)))
            assert 1 <= rows[0] <= rows[-1] <= capacity
            own = [len(edge.path.token_ids) - edge.path.shared for edge in level]
            assert own == sorted(own, reverse=True)
            for edge in level:
                copied = before[edge.source][: edge.path.shared] if edge.path.shared else []
                assert copied == edge.path.token_ids[: edge.path.shared].tolist()
                store[edge.row] = edge.path.token_ids.tolist()
                seen += 1
        store[0] = store[window.last_row]
    assert seen == len(found)


@given(PREFIXES, st.integers(1, 4))
def test_nodes_are_a_tree_whose_parents_are_the_longest_prefixes_before_them(
    prefixes: list[list[int]], least: int
) -> None:
    found = build_nodes(build_paths(arrays(prefixes))[0], least)
    texts = [tuple(node.token_ids.tolist()) for node in found]
    assert len(set(texts)) == len(texts)
    assert texts == sorted(texts)  # depth first: a prefix stands before what extends it
    for number, (node, text) in enumerate(zip(found, texts, strict=True)):
        holders = [other for other in range(number) if text[: len(texts[other])] == texts[other]]
        assert node.parent == max(holders, key=lambda other: len(texts[other]), default=-1)
    served = {request: text for node, text in zip(found, texts, strict=True) for request in node.requests}
    assert served == {i: tuple(prefix) for i, prefix in enumerate(prefixes)}


@given(PREFIXES, st.integers(1, 4))
def test_prefixes_that_part_far_behind_their_node_part_at_a_node(prefixes: list[list[int]], least: int) -> None:
    """What a child shares with its brothers behind their parent is less than `least`, so little is computed twice."""
    found = build_nodes(build_paths(arrays(prefixes))[0], least)
    for parent in range(-1, len(found)):
        start = len(found[parent].token_ids) if parent >= 0 else 0
        behind = [tuple(node.token_ids[start : start + least]) for node in found if node.parent == parent]
        whole = [text for text in behind if len(text) == least]
        assert len(set(whole)) == len(whole)
    for number, node in enumerate(found):
        if not node.requests:
            children = [other for other in found if other.parent == number]
            assert len(children) > 1
            assert len(node.token_ids) - (len(found[node.parent].token_ids) if node.parent >= 0 else 0) >= least


def test_thousands_of_nested_states_are_a_tree_too() -> None:
    ids = np.arange(3000, dtype=np.int32)
    found = build_nodes(build_paths({i: ids[: i + 1] for i in range(3000)})[0], 8)
    assert [node.parent for node in found] == list(range(-1, 2999))
