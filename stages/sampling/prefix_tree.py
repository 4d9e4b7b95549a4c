"""Find the distinct prefix tokens of a call, and an order of prefilling that runs each through the model once.

Prefixes in lexicographic order are a depth-first walk of their trie: a prefix comes right before its extensions, and
the tokens that a path shares with any earlier path, it shares with the path just before it. So a *path* (a prefix that
no other prefix extends) has to compute only the tokens after those that it shares with its predecessor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stages.maths.prefixes import common_prefix_length, sortable_bytes


@dataclass(frozen=True)
class PrefixState:
    """A distinct prefix: the first `length` tokens of a path, and the indices of the requests that start there."""

    length: int
    requests: list[int]


@dataclass(frozen=True)
class PrefixPath:
    """A prefix that no other prefix extends.

    Attributes:
      token_ids: int32 [length].
      shared: number of leading tokens that the previous path has too; this path computes the rest.
      states: the distinct prefixes that end in its own tokens, shortest first; the last one is the path itself.
      known: number of leading tokens that an earlier call left in row `known_row` of its memory.
    """

    token_ids: np.ndarray
    shared: int
    states: list[PrefixState]
    known: int = 0
    known_row: int = -1

    @property
    def start(self) -> int:
        """Index of the first token that has to be computed."""
        return max(self.shared, self.known)


def build_paths(prefixes: Mapping[int, np.ndarray]) -> tuple[list[PrefixPath], int]:
    """Return the paths of the trie of the prefixes, depth first, and its number of nodes (distinct tokens)."""
    requests: dict[bytes, list[int]] = {}
    for index, prefix in prefixes.items():
        requests.setdefault(sortable_bytes(prefix), []).append(index)
    found: list[PrefixPath] = []
    states: list[PrefixState] = []
    previous, shared_with_path, distinct = np.empty(0, np.int32), 0, 0
    for key in sorted(requests):
        ids = np.frombuffer(key, dtype=">u4").astype(np.int32)
        shared = common_prefix_length(previous, ids)
        if states and shared < len(previous):
            found.append(PrefixPath(previous, shared_with_path, states))
            states, shared_with_path = [], shared
        states.append(PrefixState(len(ids), requests[key]))
        distinct += len(ids) - shared
        previous = ids
    if states:
        found.append(PrefixPath(previous, shared_with_path, states))
    return found, distinct


@dataclass(frozen=True)
class PrefixNode:
    """A prefix where requests start, or where longer prefixes part.

    Attributes:
      token_ids: int32 [length].
      parent: index of the node with the longest other prefix of this one; -1 if there is none.
      requests: indices of the requests that start here; empty if prefixes only part here.
    """

    token_ids: np.ndarray
    parent: int
    requests: list[int]


def build_nodes(all_paths: Sequence[PrefixPath], least: int) -> list[PrefixNode]:
    """Return the states of the paths as a tree, parents first, depth first.

    A node without requests is added where prefixes part between two states, if they share at least `least` tokens there
    beyond the state above.
    """
    found: list[tuple[np.ndarray, list[int], list[int]]] = []  # prefix, requests, children
    branch: list[int] = []  # nodes from the root down to the end of the previous path
    root: list[int] = []

    def children() -> list[int]:
        return found[branch[-1]][2] if branch else root

    def depth() -> int:
        return len(found[branch[-1]][0]) if branch else 0

    def hang(prefix: np.ndarray, requests: list[int]) -> None:
        children().append(len(found))
        branch.append(len(found))
        found.append((prefix, requests, []))

    for path in all_paths:
        below = -1
        while depth() > path.shared:
            below = branch.pop()
        if below >= 0 and path.shared - depth() >= least:
            children().remove(below)
            hang(path.token_ids[: path.shared], [])
            children().append(below)
        for state in path.states:
            hang(path.token_ids[: state.length], state.requests)

    ordered: list[PrefixNode] = []
    waiting = [(node, -1) for node in reversed(root)]
    while waiting:
        node, parent = waiting.pop()
        prefix, requests, its_children = found[node]
        waiting += [(child, len(ordered)) for child in reversed(its_children)]
        ordered.append(PrefixNode(prefix, parent, requests))
    return ordered


@dataclass(frozen=True)
class PathEdge:
    """The tokens of a path from `start` on, which are computed into `row` of the store.

    The tokens before are copied from row `source` of the store, or from the memory if it holds more of them.
    """

    path: PrefixPath
    row: int
    source: int


@dataclass(frozen=True)
class PathWindow:
    """Paths that are prefilled together.

    Attributes:
      levels: edges by depth; an edge depends only on earlier levels. The edges of a level have consecutive rows, those
        with the most tokens to compute first.
      last_row: row of the last path. It is copied to row 0, the source of the next window's first edges.
    """

    levels: list[list[PathEdge]]
    last_row: int


def split_windows(all_paths: Sequence[PrefixPath], capacity: int) -> Iterator[PathWindow]:
    """Split the paths into windows of at most `capacity` paths, for a store of capacity + 1 rows.

    Row 0 holds the last path of the previous window. Because the paths are in depth-first order, it has all tokens that
    this window shares with earlier ones, so no token is computed twice.
    """
    for first in range(0, len(all_paths), capacity):
        window = all_paths[first : first + capacity]
        sources, depths = _dependencies(window)
        order = sorted(range(len(window)), key=lambda i: (depths[i], window[i].start - len(window[i].token_ids)))
        row_of = {i: row for row, i in enumerate(order, start=1)}
        levels: list[list[PathEdge]] = [[] for _ in range(max(depths) + 1)]
        for i in order:
            source = sources[i]
            levels[depths[i]].append(PathEdge(window[i], row_of[i], 0 if source is None else row_of[source]))
        yield PathWindow(levels, row_of[len(window) - 1])


def _dependencies(window: Sequence[PrefixPath]) -> tuple[list[int | None], list[int]]:
    """Return the source and the depth of each path of a window.

    The source is the earlier path of the window that computes the last token that both share; None if there is none.
    The depth is 0 without a source, else one more than the depth of the source.
    """
    sources: list[int | None] = []
    depths: list[int] = []
    branch: list[int] = []  # paths whose own tokens are on the way to the current path, from the root down
    for i, path in enumerate(window):
        while branch and window[branch[-1]].shared >= path.shared:
            branch.pop()
        sources.append(branch[-1] if branch else None)
        depths.append(depths[branch[-1]] + 1 if branch else 0)
        branch.append(i)
    return sources, depths
