"""Owns which token sequences share a prefix: a group of responses, say, read as a tree that grew unplanned."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def sortable_bytes(tokens: NDArray[np.int32]) -> bytes:
    """Token ids [T] as bytes that compare as the ids do: big-endian."""
    return np.ascontiguousarray(tokens, dtype=">u4").tobytes()


def common_prefix_length(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """How many tokens two sequences begin with in common."""
    shorter = min(a.size, b.size)
    differ = a[:shorter] != b[:shorter]
    return int(differ.argmax()) if differ.any() else shorter


def shared_prefixes(responses: Sequence[NDArray[np.int32]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Orders responses as in a dictionary, where those that share a prefix stand side by side.

    Args:
      responses: n of token ids [T].

    Returns:
      order: [n] the responses so ordered. common: [n − 1], the tokens that each shares with the next in that order.
    """
    keys = [sortable_bytes(tokens) for tokens in responses]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    common = [common_prefix_length(responses[a], responses[b]) for a, b in itertools.pairwise(order)]
    return np.array(order, np.int64), np.array(common, np.int64)


def responses_with_prefix(
    common: NDArray[np.int64], place: NDArray[np.int64], length: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which responses begin with the same tokens as a given one.

    Args:
      common: [n − 1] of `shared_prefixes`.
      place: [S] places of responses in that order. length: [S] how many tokens must agree, at most the response's own.

    Returns:
      [S] each: the first place and the number of places of those that agree, the response itself among them.
    """
    parts = common[None, :] < length[:, None]  # [S, n − 1]: between which neighbours the prefix ends
    between = np.arange(common.size)
    first = np.max(np.where(parts & (between < place[:, None]), between + 1, 0), axis=1, initial=0)
    stop = np.min(
        np.where(parts & (between >= place[:, None]), between + 1, common.size + 1), axis=1, initial=common.size + 1
    )
    return first, stop - first
