"""Test the trie of prefixes: each distinct token is computed once, after the tokens before it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages.sampling.prefix_tree import build_nodes, build_paths, split_windows

PREFIXES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=14)


def arrays(prefixes: list[list[int]]) -> dict[int, np.ndarray]:
    return {i: np.array(prefix, np.int32) for i, prefix in enumerate(prefixes)}


def test_nested_prefixes_of_one_trajectory_are_positions_of_one_path() -> None:
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
def test_windows_copy_only_tokens_that_have_been_computed(prefixes: list[list[int]], capacity: int) -> None:
    """Simulate the prefill level by level, for any size of the store, with token ids in place of keys and values."""
    found, _ = build_paths(arrays(prefixes))
    store: dict[int, list[int]] = {0: []}
    seen = 0
    for window in split_windows(found, capacity):
        for level in window.levels:
            before = {row: list(token_ids) for row, token_ids in store.items()}
            rows = [edge.row for edge in level]
            assert rows == list(range(rows[0], rows[0] + len(rows)))
            assert 1 <= rows[0] <= rows[-1] <= capacity
            new_tokens = [len(edge.path.token_ids) - edge.path.shared for edge in level]
            assert new_tokens == sorted(new_tokens, reverse=True)
            for edge in level:
                copied = before[edge.source][: edge.path.shared] if edge.path.shared else []
                assert copied == edge.path.token_ids[: edge.path.shared].tolist()
                store[edge.row] = edge.path.token_ids.tolist()
                seen += 1
        store[0] = store[window.last_row]
    assert seen == len(found)


@given(PREFIXES, st.integers(1, 4))
def test_the_parent_of_a_node_is_its_longest_prefix_among_the_nodes(prefixes: list[list[int]], least: int) -> None:
    found = build_nodes(build_paths(arrays(prefixes))[0], least)
    texts = [tuple(node.token_ids.tolist()) for node in found]
    assert len(set(texts)) == len(texts)
    assert texts == sorted(texts)  # depth first: a prefix precedes its extensions
    for number, (node, text) in enumerate(zip(found, texts, strict=True)):
        ancestors = [other for other in range(number) if text[: len(texts[other])] == texts[other]]
        assert node.parent == max(ancestors, key=lambda other: len(texts[other]), default=-1)
    served = {request: text for node, text in zip(found, texts, strict=True) for request in node.requests}
    assert served == {i: tuple(prefix) for i, prefix in enumerate(prefixes)}


@given(PREFIXES, st.integers(1, 4))
def test_prefixes_that_share_many_tokens_diverge_at_a_node(prefixes: list[list[int]], least: int) -> None:
    """Siblings share fewer than `least` tokens after their parent, so few tokens are computed twice."""
    found = build_nodes(build_paths(arrays(prefixes))[0], least)
    for parent in range(-1, len(found)):
        start = len(found[parent].token_ids) if parent >= 0 else 0
        starts = [tuple(node.token_ids[start : start + least]) for node in found if node.parent == parent]
        full = [text for text in starts if len(text) == least]
        assert len(set(full)) == len(full)
    for number, node in enumerate(found):
        if not node.requests:
            children = [other for other in found if other.parent == number]
            assert len(children) > 1
            assert len(node.token_ids) - (len(found[node.parent].token_ids) if node.parent >= 0 else 0) >= least


def test_thousands_of_nested_prefixes_are_a_chain_of_nodes() -> None:
    ids = np.arange(3000, dtype=np.int32)
    found = build_nodes(build_paths({i: ids[: i + 1] for i in range(3000)})[0], 8)
    assert [node.parent for node in found] == list(range(-1, 2999))
