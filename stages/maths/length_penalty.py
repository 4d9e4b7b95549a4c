"""Compute the soft penalty of responses that come near the maximum length."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def soft_overlong_penalty(lengths: ArrayLike, max_tokens: int, buffer: int, weight: float = 1.0) -> NDArray[np.float64]:
    """Return what is added to the reward of each response (DAPO, arXiv 2503.14476, eq. 13).

        0                                        for |y| ≤ L − B
        −weight · (|y| − (L − B)) / B            for |y| > L − B;  −weight at |y| = L

    Args:
      lengths: |y|, [N] tokens of whole responses, at most L.
      max_tokens: L, the maximum length.
      buffer: B, in tokens, from 1 to L.
      weight: at least 0.

    Returns:
      [N] float64, from −weight to 0.

    Raises:
      ValueError: a parameter is out of range, or a response is longer than L.
    """
    sizes = np.asarray(lengths, np.float64)
    if not 1 <= buffer <= max_tokens or weight < 0:
        raise ValueError(f"expected 1 ≤ buffer ≤ max_tokens and weight ≥ 0; got {buffer}, {max_tokens}, {weight}")
    if (sizes > max_tokens).any():
        raise ValueError(f"a response has {int(sizes.max())} tokens, more than the maximum of {max_tokens}")
    return -weight * np.maximum(sizes - (max_tokens - buffer), 0.0) / buffer
