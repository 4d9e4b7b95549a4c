"""Expected numbers of tokens of responses, rollouts and trees, from the lengths of earlier responses.

All functions take the survival function of the lengths, S(t) = P(L > t) for t = 0 … T − 1: the probability that a
response has a token at position t. A tree does not change the length of a single path from its root to a leaf, so the
lengths of independent responses predict those of trees, and the reverse.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import mul

import numpy as np
from numpy.typing import NDArray

from stages.maths.ragged import Ragged


def survival(lengths: NDArray[np.integer], weights: NDArray[np.floating], limit: int) -> NDArray[np.float64]:
    """Return S(t) = P(L > t), where lengths above the limit count as the limit.

    Args:
      lengths: [N] int, in tokens.
      weights: [N] of the responses, not negative; they need not sum to 1.
      limit: T, the maximum length.

    Returns:
      [T] float64.

    Raises:
      ValueError: there is no response with a positive weight.
    """
    total = float(weights.sum())
    if not total > 0:
        raise ValueError("expected at least one response with a positive weight; found none")
    ended = np.bincount(np.minimum(lengths, limit), weights, limit + 1) / total
    return np.clip(1 - np.cumsum(ended)[:limit], 0, 1)


def tree_tokens(alive: NDArray[np.float64], branches: Sequence[int], segment_tokens: int) -> float:
    """Return the expected tokens of a tree whose nodes branch every M tokens: Σ_d (b₀ … b_d) Σ_{t in level d} S(t).

    Level d holds the positions dM … (d + 1)M − 1; the last level holds the rest.

    Args:
      alive: [T], from `survival`.
      branches: number of children per node, level by level.
      segment_tokens: M.
    """
    starts = [min(depth * segment_tokens, alive.size) for depth in range(len(branches))]
    ends = [*starts[1:], alive.size]
    paths = accumulate(branches, mul)
    return float(sum(count * alive[a:b].sum() for count, a, b in zip(paths, starts, ends, strict=True)))


def rest_tokens(alive: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the expected tokens of a rollout from the state at each position: Σ_{u ≥ t} S(u) / S(t).

    Args:
      alive: [T], from `survival`.

    Returns:
      [T] float64; 0 where no response is so long.
    """
    ahead = np.cumsum(alive[::-1])[::-1]
    return np.divide(ahead, alive, out=np.zeros_like(ahead), where=alive > 0)


def first_of_equal(
    token_ids: Ragged, rows: NDArray[np.int64], ends: NDArray[np.int64], names: list[str]
) -> NDArray[np.bool_]:
    """Return whether each state is the first of its kind: states of a question after the same tokens are equal.

    Args:
      token_ids: N ragged rows, the responses.
      rows, ends: [S] row and number of tokens of each state.
      names: [N] question of each response.

    Returns:
      [S] bool.
    """
    seen: set[tuple[str, bytes]] = set()
    first = np.zeros(rows.size, np.bool_)
    for i, (row, end) in enumerate(zip(rows.tolist(), ends.tolist(), strict=True)):
        state = (names[row], token_ids[row][:end].tobytes())
        first[i] = state not in seen
        seen.add(state)
    return first
