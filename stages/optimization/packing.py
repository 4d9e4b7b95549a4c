"""The packed layout: examples with a common prefix share it, and the model reads it once.

The examples of a row form a trie of tokens, laid out in pre-order. The position of a token is its depth, and it sees
its ancestors and itself (`batches.TokenTree`), so it has the same hidden state as in a sequence of its own. Segments of
a tree share the path to their common ancestor, responses to one question share the prompt. The model reads each
distinct token of a row once instead of the whole prefix for every example.

Attention is computed over the whole row, so rows are bounded: a long trie is cut into several rows, each of which
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
"""Longest row, in lengths of the longest example. Longer rows share more tokens but compute more masked attention."""


@dataclass(frozen=True, eq=False)
class PackedRow:
    """A trie of examples in pre-order.

    Attributes:
      tokens, depth, ends: int64 [L], as in `MicroBatch.input_ids` and `TokenTree`.
      examples: indices of its examples.
      paths: for each example, int64 [forward_tokens]: indices of its tokens in the row.
    """

    tokens: NDArray[np.int64]
    depth: NDArray[np.int64]
    ends: NDArray[np.int64]
    examples: list[int]
    paths: list[NDArray[np.int64]]


def packed(
    examples: Sequence[Example], size: int, subset: RankSubset = ALL_EXAMPLES, /
) -> Iterator[tuple[list[int], MicroBatch]]:
    """Lay examples out with shared prefixes, at most `size` × (longest example) tokens per pass; see `batches.Layout`.

    Examples without a kept token are left out. Subsets are contiguous in the order in which neighbors share most, so
    that two ranks read few tokens twice.
    """
    filled = [index for index, example in enumerate(examples) if example.kept.size]
    if not filled:
        return
    longest = max(examples[index].forward_tokens for index in filled)
    budget = size * longest
    rows = pack(examples, filled, min(budget, int(ROW_LIMIT * longest)), subset)
    rows.sort(key=lambda row: -row.tokens.size)  # longest first: a pass too large for the memory fails at once
    while rows:
        count = max(1, budget // rows[0].tokens.size)
        group, rows = rows[:count], rows[count:]
        yield [index for row in group for index in row.examples], collate_rows(examples, group)


def pack(
    examples: Sequence[Example], indices: Sequence[int], limit: int, subset: RankSubset = ALL_EXAMPLES
) -> list[PackedRow]:
    """Pack examples into rows of at most `limit` tokens; an example that is longer gets a row of its own.

    In lexicographic order of their tokens, neighbors share the longest prefixes, so rows are filled in that order.
    """
    sequences = {index: examples[index].tokens[: examples[index].forward_tokens] for index in indices}
    order = sorted(indices, key=lambda index: sortable_bytes(sequences[index]))
    common = [0, *(common_prefix_length(sequences[one], sequences[other]) for one, other in pairwise(order))]
    new_tokens = [sequences[index].size - shared for index, shared in zip(order, common, strict=True)]
    own = contiguous_slices(new_tokens, subset.count)[subset.index]
    groups: list[tuple[list[int], list[int]]] = []  # of each row: examples, and tokens shared with the one before
    length = 0
    for index, shared in zip(order[own], common[own], strict=True):
        if not groups or length + sequences[index].size - shared > limit:
            groups.append(([], []))
            length = shared = 0
        groups[-1][0].append(index)
        groups[-1][1].append(shared)
        length += sequences[index].size - shared
    return [_make_row([sequences[index] for index in group], shared, group) for group, shared in groups]


def collate_rows(examples: Sequence[Example], rows: Sequence[PackedRow]) -> MicroBatch:
    """Pad rows into one pass; a padding token sees only itself."""
    length = max(row.tokens.size for row in rows)
    input_ids, depth = np.zeros((2, len(rows), length), np.int64)
    ends = np.tile(np.arange(1, length + 1), (len(rows), 1))
    positions, targets = [], []
    for number, row in enumerate(rows):
        filled = (number, slice(row.tokens.size))
        input_ids[filled], depth[filled], ends[filled] = row.tokens, row.depth, row.ends
        for index, path in zip(row.examples, row.paths, strict=True):
            kept = examples[index].kept
            positions.append(number * length + path[kept - 1])
            targets.append(examples[index].tokens[kept])
    flat = np.concatenate(targets).astype(np.int64)
    return MicroBatch(input_ids, np.concatenate(positions), flat, TokenTree(depth, ends))


def _make_row(sequences: Sequence[NDArray[np.int32]], shared: Sequence[int], indices: list[int]) -> PackedRow:
    """Build the trie of sequences in order; each shares its first `shared` tokens with the one before."""
    total = sum(sequence.size - common for sequence, common in zip(sequences, shared, strict=True))
    tokens, depth, ends = np.empty((3, total), np.int64)
    path, paths, filled = np.empty(0, np.int64), [], 0
    for sequence, common in zip(sequences, shared, strict=True):
        ends[path[common:]] = filled  # in pre-order, the tokens after the fork have no further descendants
        new = slice(filled, filled + sequence.size - common)
        tokens[new], depth[new] = sequence[common:], np.arange(common, sequence.size)
        path = np.concatenate([path[:common], np.arange(new.start, new.stop)])
        paths.append(path)
        filled = new.stop
    ends[path] = filled
    return PackedRow(tokens, depth, ends, indices, paths)
