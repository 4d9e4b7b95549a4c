"""Find token sequences with common prefixes; the responses of a group form a prefix tree."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def sortable_bytes(tokens: NDArray[np.int32]) -> bytes:
    """Return token ids [T] as big-endian bytes, whose order is the lexicographic order of the ids."""
    return np.ascontiguousarray(tokens, dtype=">u4").tobytes()


def common_prefix_length(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """Return the number of leading tokens that two sequences have in common."""
    shorter = min(a.size, b.size)
    differ = a[:shorter] != b[:shorter]
    return int(differ.argmax()) if differ.any() else shorter


def shared_prefixes(responses: Sequence[NDArray[np.int32]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sort responses lexicographically, so that responses with a common prefix are adjacent.

    Args:
      responses: n arrays of token ids [T].

    Returns:
      order: [n] int64, the indices of the responses in sorted order.
      common: [n − 1] int64, the number of leading tokens that each response shares with the next in that order.
    """
    keys = [sortable_bytes(tokens) for tokens in responses]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    common = [common_prefix_length(responses[a], responses[b]) for a, b in itertools.pairwise(order)]
    return np.array(order, np.int64), np.array(common, np.int64)


def responses_with_prefix(
    common: NDArray[np.int64], position: NDArray[np.int64], length: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which responses begin with the same tokens as a given one, as ranges of the sorted order.

    Args:
      common: [n − 1], from `shared_prefixes`.
      position: [S] positions of responses in the sorted order.
      length: [S] number of leading tokens that must agree, at most the length of the response.

    Returns:
      [S] each: the first position and the number of the responses that agree, the given response included.
    """
    # [S, n − 1]: whether the responses at positions i and i + 1 differ within the first `length` tokens. The range of
    # a response extends in both directions to the nearest such border.
    differs = common[None, :] < length[:, None]
    index = np.arange(common.size)
    first = np.max(np.where(differs & (index < position[:, None]), index + 1, 0), axis=1, initial=0)
    stop = np.min(
        np.where(differs & (index >= position[:, None]), index + 1, common.size + 1), axis=1, initial=common.size + 1
    )
    return first, stop - first
