"""Owns randomness by name: a number depends on the key and the position asked for, never on batch, order or crashes."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def random_key(*parts: int | np.integer | str | bytes) -> int:
    """A 64-bit key for what is named by the parts, e.g. `random_key(seed, question_id, sample)`.

    Every part enters with its type and length, so `("a", "b")`, `("ab",)` and `(1,)`, `("1",)` are all different.

    Returns:
      An integer in [0, 2^64): the first 8 bytes of a BLAKE2b digest, the same on every machine.

    Raises:
      TypeError: a part that is neither int, str nor bytes (a float has no one spelling).
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        kind, data = _encode(part)
        digest.update(kind + len(data).to_bytes(8, "little") + data)
    return int.from_bytes(digest.digest(), "little")


def uniforms(keys: ArrayLike, positions: ArrayLike) -> NDArray[np.float64]:
    """Number `position` of the stream `key`, for each pair: 53 random bits in [0, 1).

    The SplitMix64 generator (Steele, Lea, Flood 2014) read at a counter: mix(mix(key) + (position + 1) · golden), the
    inner mix so that neighbouring keys do not share shifted streams.

    Args:
      keys: [B] uint64 (or ints in [0, 2^64)).
      positions: [B] int64, or one position for all keys; not negative.

    Returns:
      [B] float64.
    """
    states = _mix(np.asarray(keys, dtype=np.uint64))
    counters = np.asarray(positions, dtype=np.int64).astype(np.uint64)
    with np.errstate(over="ignore"):
        bits = _mix(states + (counters + np.uint64(1)) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * np.float64(2.0**-53)


def _encode(part: int | np.integer | str | bytes) -> tuple[bytes, bytes]:
    if isinstance(part, str):
        return b"s", part.encode()
    if isinstance(part, bytes):
        return b"b", part
    if isinstance(part, int | np.integer):
        return b"i", str(int(part)).encode()
    raise TypeError(f"a random key is made of int, str or bytes; got {type(part).__name__} {part!r}")


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser, a bijection of the 64-bit integers."""
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
