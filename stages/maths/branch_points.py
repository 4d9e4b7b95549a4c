"""Choose the tokens of a response at which a tree branches."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def most_doubtful(doubt: ArrayLike, count: int) -> NDArray[np.int64]:
    """Return the offsets of the `count` tokens of a response with the largest doubt, in increasing order.

    Doubt is the surprisal −log π(y_t | s_t) (TreeRL, arXiv 2506.11902, section 3.1) or the entropy of π(· | s_t) (FR3E,
    arXiv 2507.07017). Among equal ones, the first is chosen. Two kinds of tokens are not candidates: the first one,
    where a branch is another response to the prompt, and tokens without doubt, which every branch would repeat.

    Args:
      doubt: [T] at least 0, in nats.
      count: 0 or more.

    Returns:
      [K] offsets in 1 … T − 1; K is below `count` where there are fewer candidates.

    Raises:
      ValueError: a doubt is negative or NaN.
    """
    values = np.asarray(doubt, np.float64)
    if not (values >= 0).all():
        raise ValueError("the doubt of a token must be at least 0")
    order = np.argsort(-values, kind="stable")
    candidates = order[(order > 0) & (values[order] > 0)]
    return np.sort(candidates[:count]).astype(np.int64)


def spread_cutpoints(is_cutpoint: ArrayLike, count: int) -> NDArray[np.int64]:
    """Return the offsets of `count` cutpoints that divide the cutpoints of a response into equal shares.

    Branch i of `count` is at cutpoint ⌊i · C / (count + 1)⌋ of C, counted from 0. The first token is not a candidate.

    Args:
      is_cutpoint: [T] bool, as `partition.find_cutpoints` returns.
      count: 0 or more.

    Returns:
      [K] offsets in 1 … T − 1, increasing; all cutpoints where there are at most `count`.
    """
    offsets = np.flatnonzero(np.asarray(is_cutpoint, np.bool_)).astype(np.int64)
    offsets = offsets[offsets > 0]
    if offsets.size <= count:
        return offsets
    return offsets[np.arange(1, count + 1) * offsets.size // (count + 1)]
