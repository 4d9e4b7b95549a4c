"""Owns the packed layout: examples that begin alike share what they have in common, and the model reads it once.

The examples of a row form a trie of tokens, laid out in pre-order: a token's position is its depth, and it sees its
ancestors and itself (`batches.TokenTree`), so its hidden state is the one that it has in a sequence of its own. Siblings of
a tree share their whole path, responses to one question their prompt. What the model then reads is each distinct token
of a row once, in place of the whole prefix again for every example.

A row is long, and attention looks at all of it, so rows are bounded: a long trie is cut into several, each of which
repeats the path to its first example. Method: tree training, arXiv 2511.00413.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from stages.maths.balancing import contiguous_slices
from stages.maths.prefixes import common_prefix_length, sortable_bytes
from stages.optimization.batches import ALL_EXAMPLES, Example, MicroBatch, RankSubset, TokenTree

ROW_LIMIT = 3.0
"""The longest row, in lengths of the longest example: what it shares is paid for by attention over what it does not."""


@dataclass(frozen=True, eq=False)
class Row:
    """A trie of examples in pre-order.

    Attributes:
      tokens, depth, ends: int64 [L], as in `MicroBatch.input_ids` and `TokenTree`.
      examples: indices of its examples.
      paths: of each of them, int64 [fed]: the places of its tokens in the row.
    """

    tokens: NDArray[np.int64]
    depth: NDArray[np.int64]
    ends: NDArray[np.int64]
    examples: list[int]
    paths: list[NDArray[np.int64]]


def packed(
    examples: Sequence[Example], size: int, part: RankSubset = ALL_EXAMPLES, /
) -> Iterator[tuple[list[int], MicroBatch]]:
    """The layout of shared prefixes, in passes that hold no more tokens than `size` of the longest examples do.

    Examples without a kept token are left out. Parts are stretches of the order in which neighbours share most, so
    that little is read by two of them. See `batches.Layout`.
    """
    filled = [index for index, example in enumerate(examples) if example.kept.size]
    if not filled:
        return
    longest = max(examples[index].forward_tokens for index in filled)
    budget = size * longest
    rows = pack(examples, filled, min(budget, int(ROW_LIMIT * longest)), part)
    rows.sort(key=lambda row: -row.tokens.size)  # stable; the longest first, so that what is too large fails at once
    while rows:
        count = max(1, budget // rows[0].tokens.size)
        group, rows = rows[:count], rows[count:]
        yield [index for row in group for index in row.examples], collate_rows(examples, group)


def pack(examples: Sequence[Example], indices: Sequence[int], limit: int, part: RankSubset = ALL_EXAMPLES) -> list[Row]:
    """Rows of at most `limit` tokens (or of one example that is longer).

    Neighbours in the order of their tokens share most, so a row takes them one after the other until it is full.
    """
    fed = {index: examples[index].tokens[: examples[index].forward_tokens] for index in indices}
    order = sorted(indices, key=lambda index: sortable_bytes(fed[index]))
    common = [0, *(common_prefix_length(fed[one], fed[other]) for one, other in pairwise(order))]
    mine = contiguous_slices(
        [fed[index].size - shared for index, shared in zip(order, common, strict=True)], part.count
    )
    groups: list[tuple[list[int], list[int]]] = []
    length = 0
    for index, shared in zip(order[mine[part.index]], common[mine[part.index]], strict=True):
        if not groups or length + fed[index].size - shared > limit:
            groups.append(([], []))
            length = shared = 0
        groups[-1][0].append(index)
        groups[-1][1].append(shared)
        length += fed[index].size - shared
    return [_row([fed[index] for index in group], shared, group) for group, shared in groups]


def collate_rows(examples: Sequence[Example], rows: Sequence[Row]) -> MicroBatch:
    """Pad rows into one pass; the padding sees itself alone."""
    length = max(row.tokens.size for row in rows)
    input_ids, depth = np.zeros((2, len(rows), length), np.int64)
    ends = np.tile(np.arange(1, length + 1), (len(rows), 1))
    positions, targets = [], []
    for number, row in enumerate(rows):
        place = (number, slice(row.tokens.size))
        input_ids[place], depth[place], ends[place] = row.tokens, row.depth, row.ends
        for index, path in zip(row.examples, row.paths, strict=True):
            kept = examples[index].kept
            positions.append(number * length + path[kept - 1])
            targets.append(examples[index].tokens[kept])
    flat = np.concatenate(targets).astype(np.int64)
    return MicroBatch(input_ids, np.concatenate(positions), flat, TokenTree(depth, ends))


def _row(sequences: Sequence[NDArray[np.int32]], shared: Sequence[int], indices: list[int]) -> Row:
    """The trie of sequences in order, each of which shares its first `shared` tokens with the one before."""
    total = sum(sequence.size - common for sequence, common in zip(sequences, shared, strict=True))
    tokens, depth, ends = np.empty((3, total), np.int64)
    path, paths, at = np.empty(0, np.int64), [], 0
    for sequence, common in zip(sequences, shared, strict=True):
        ends[path[common:]] = at  # nothing continues them any more
        new = slice(at, at + sequence.size - common)
        tokens[new], depth[new] = sequence[common:], np.arange(common, sequence.size)
        path = np.concatenate([path[:common], np.arange(new.start, new.stop)])
        paths.append(path)
        at = new.stop
    ends[path] = at
    return Row(tokens, depth, ends, indices, paths)
