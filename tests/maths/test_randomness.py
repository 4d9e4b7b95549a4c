"""Random numbers by name: reproducible, independent of batch and order, uniform, uncorrelated between neighbors."""

import numpy as np
import pytest

from stages.maths.randomness import random_key, uniforms

MASK = 2**64 - 1


def mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def splitmix(seed: int, position: int) -> int:
    return mix((seed + (position + 1) * 0x9E3779B97F4A7C15) & MASK)


def test_numbers_are_splitmix64_at_a_counter():
    # The published first outputs of SplitMix64 for the seed 1234567.
    assert [splitmix(1234567, i) for i in range(2)] == [6457827717110365317, 3203168211198807973]
    keys = [0, 1, 1234567, MASK]
    expected = [(splitmix(mix(key), 7) >> 11) * 2.0**-53 for key in keys]
    assert uniforms(np.array(keys, np.uint64), np.full(4, 7)).tolist() == expected


def test_keys_do_not_change_between_releases():
    assert random_key(0, "q0", 3) == 6250723004219385930


def test_keys_depend_on_type_length_and_order_of_parts():
    keys = {
        random_key(*parts) for parts in [("a", "b"), ("ab",), ("b", "a"), (1,), ("1",), (b"1",), (), (-1,), (1, "")]
    }
    assert len(keys) == 9


def test_numpy_integers_are_integers():
    assert random_key(np.int64(5), "x") == random_key(5, "x")


def test_float_parts_are_refused():
    with pytest.raises(TypeError, match="float"):
        random_key(0.5)  # pyright: ignore[reportArgumentType]


def test_numbers_do_not_depend_on_the_batch():
    keys = np.array([random_key("s", i) for i in range(64)], np.uint64)
    positions = np.arange(64) % 5
    together = uniforms(keys, positions)
    order = np.random.default_rng(0).permutation(64)
    assert np.array_equal(uniforms(keys[order], positions[order]), together[order])
    assert [uniforms(keys[i : i + 1], positions[i : i + 1])[0] for i in range(64)] == together.tolist()


@pytest.mark.parametrize("along", ["keys", "positions"])
def test_numbers_are_uniform_and_uncorrelated(along):
    n = 100_000
    line, zero = np.arange(n), np.zeros(n, np.int64)
    drawn = uniforms(line, zero) if along == "keys" else uniforms(zero, line)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = np.histogram(drawn, 100, (0, 1))[0]
    assert ((counts - n / 100) ** 2 / (n / 100)).sum() < 160  # chi-square, 99 degrees: p < 1e-4 above
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 0.015
