"""Generate random numbers by name: a number depends only on its key and position, not on batch, order or restarts."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, the increment of SplitMix64


def random_key(*parts: int | np.integer | str | bytes) -> int:
    """Return a 64-bit key for a name made of several parts, for example `random_key(seed, question_id, sample)`.

    The type and the length of every part enter the key, so that `("a", "b")`, `("ab",)`, `(1,)` and `("1",)` differ.

    Returns:
      An integer in [0, 2^64), an 8-byte BLAKE2b digest; the same on every machine.

    Raises:
      TypeError: a part is neither int, str nor bytes (floats have no unique spelling).
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        kind, data = _encode(part)
        digest.update(kind + len(data).to_bytes(8, "little") + data)
    return int.from_bytes(digest.digest(), "little")


def uniforms(keys: ArrayLike, positions: ArrayLike) -> NDArray[np.float64]:
    """Return the uniform number at a position of the stream of each key.

    This is SplitMix64 (Steele, Lea, Flood 2014) evaluated at a counter: mix(mix(key) + (position + 1) · golden). The
    inner mix prevents the streams of adjacent keys from being shifted copies of each other.

    Args:
      keys: [B] uint64 (or ints in [0, 2^64)).
      positions: [B] int64 or one position for all keys, at least 0.

    Returns:
      [B] float64 in [0, 1), multiples of 2^−53.
    """
    states = _mix(np.asarray(keys, dtype=np.uint64))
    counters = np.asarray(positions, dtype=np.int64).astype(np.uint64)
    with np.errstate(over="ignore"):
        bits = _mix(states + (counters + np.uint64(1)) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * np.float64(2.0**-53)


def _encode(part: int | np.integer | str | bytes) -> tuple[bytes, bytes]:
    """Return a tag for the type of a part, and its bytes."""
    if isinstance(part, str):
        return b"s", part.encode()
    if isinstance(part, bytes):
        return b"b", part
    if isinstance(part, int | np.integer):
        return b"i", str(int(part)).encode()
    raise TypeError(f"parts of a random key must be int, str or bytes; got {type(part).__name__} {part!r}")


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply the finalizer of SplitMix64, a bijection of the 64-bit integers; its products wrap around by design."""
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
