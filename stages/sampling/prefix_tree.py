"""Which prefix tokens of a call are distinct, and an order of prefilling that runs each through the model once.

Prefixes in lexicographic order are a depth-first walk of their trie: a prefix of another stands right before its
extensions, and what a path shares with any earlier one, it shares with the path just before it. So a *path* (a prefix
that no other extends) only has to compute the tokens behind what it shares with its predecessor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stages.maths.prefixes import common_prefix_length, sortable_bytes


@dataclass(frozen=True)
class State:
    """A distinct prefix: the position `length` of a path, and the requests that start there."""

    length: int
    requests: list[int]


@dataclass(frozen=True)
class Path:
    """A prefix that no other prefix extends.

    Attributes:
      token_ids: int32 [length].
      shared: leading tokens that the path before it has too; it computes the rest.
      states: the distinct prefixes that end in its own tokens, shortest first; the last one is the path itself.
      known: leading tokens that an earlier call has left, in row `known_row` of its memory.
    """

    token_ids: np.ndarray
    shared: int
    states: list[State]
    known: int = 0
    known_row: int = -1

    @property
    def start(self) -> int:
        """Where the tokens begin that have to be computed."""
        return max(self.shared, self.known)


def paths(prefixes: Mapping[int, np.ndarray]) -> tuple[list[Path], int]:
    """The paths of the trie of the requests' prefixes, depth first, and how many distinct tokens (nodes) it has."""
    requests: dict[bytes, list[int]] = {}
    for index, prefix in prefixes.items():
        requests.setdefault(sortable_bytes(prefix), []).append(index)
    found: list[Path] = []
    states: list[State] = []
    previous, shared_with_path, distinct = np.empty(0, np.int32), 0, 0
    for key in sorted(requests):
        ids = np.frombuffer(key, dtype=">u4").astype(np.int32)
        shared = common_prefix_length(previous, ids)
        if states and shared < len(previous):
            found.append(Path(previous, shared_with_path, states))
            states, shared_with_path = [], shared
        states.append(State(len(ids), requests[key]))
        distinct += len(ids) - shared
        previous = ids
    if states:
        found.append(Path(previous, shared_with_path, states))
    return found, distinct


@dataclass(frozen=True)
class Node:
    """A prefix from which several things go on, or requests start.

    Attributes:
      token_ids: int32 [length].
      parent: number of the node that holds the longest other prefix of it; -1 where there is none.
      requests: those that start there; none where prefixes only part.
    """

    token_ids: np.ndarray
    parent: int
    requests: list[int]


def nodes(all_paths: Sequence[Path], least: int) -> list[Node]:
    """The states of the paths as a tree, parents first, depth first; and the places where prefixes part on their way
    from one state to the next, if they share at least `least` tokens there that no state has."""
    found: list[tuple[np.ndarray, list[int], list[int]]] = []  # prefix, requests, children
    branch: list[int] = []  # from the root down to where the path before ended
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

    ordered: list[Node] = []
    waiting = [(node, -1) for node in reversed(root)]
    while waiting:
        node, parent = waiting.pop()
        prefix, requests, its_children = found[node]
        waiting += [(child, len(ordered)) for child in reversed(its_children)]
        ordered.append(Node(prefix, parent, requests))
    return ordered


@dataclass(frozen=True)
class Edge:
    """The tokens of a path from `start` on: computed into `row` of the store, behind those copied from `source` (or
    from the memory, where that knows more)."""

    path: Path
    row: int
    source: int


@dataclass(frozen=True)
class Window:
    """Paths that are prefilled together.

    Attributes:
      levels: edges that depend on earlier levels alone; their rows follow one another, the most to compute first.
      last_row: where the last path lies. Copied to row 0, it is what the next window's sources 0 mean.
    """

    levels: list[list[Edge]]
    last_row: int


def windows(all_paths: Sequence[Path], capacity: int) -> Iterator[Window]:
    """Cuts the paths into windows of at most `capacity` paths, for a store of capacity + 1 rows.

    Row 0 holds the last path of the window before: all that this window shares with earlier ones, so nothing is
    computed twice.
    """
    for first in range(0, len(all_paths), capacity):
        window = all_paths[first : first + capacity]
        sources, depths = _dependencies(window)
        order = sorted(range(len(window)), key=lambda i: (depths[i], window[i].start - len(window[i].token_ids)))
        row_of = {i: row for row, i in enumerate(order, start=1)}
        levels: list[list[Edge]] = [[] for _ in range(max(depths) + 1)]
        for i in order:
            source = sources[i]
            levels[depths[i]].append(Edge(window[i], row_of[i], 0 if source is None else row_of[source]))
        yield Window(levels, row_of[len(window) - 1])


def _dependencies(window: Sequence[Path]) -> tuple[list[int | None], list[int]]:
    """For each path the earlier one of the window that computes the last token they share (None: none of them), and
    its depth: 0 without such a source, else one more than the source's."""
    sources: list[int | None] = []
    depths: list[int] = []
    branch: list[int] = []  # paths whose own tokens lie on the way to the current one, from the root down
    for i, path in enumerate(window):
        while branch and window[branch[-1]].shared >= path.shared:
            branch.pop()
        sources.append(branch[-1] if branch else None)
        depths.append(depths[branch[-1]] + 1 if branch else 0)
        branch.append(i)
    return sources, depths
