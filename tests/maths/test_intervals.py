"""Wilson intervals: published numbers and properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.maths.intervals import wilson, wilson_width


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_published_intervals(correct, total, low, high):
    found = wilson(correct / total, total)
    np.testing.assert_allclose(found, (low, high), atol=5e-5)


def test_the_width_is_positive_if_all_outcomes_agree_and_shrinks_with_their_number():
    # If all n outcomes agree, the width is z²/(n + z²), with z = 1.96.
    np.testing.assert_allclose(wilson_width(1.0, [4, 16, 32]), 1.96**2 / (np.array([4, 16, 32]) + 1.96**2), atol=1e-4)
    assert wilson_width(0.3, 0) == 1.0


@given(st.floats(0, 1), st.integers(1, 10_000), st.floats(0.5, 0.999))
def test_an_interval_contains_its_mean_and_is_symmetric(mean, count, confidence):
    low, high = wilson(mean, count, confidence)
    assert 0 <= low <= mean + 1e-12
    assert mean - 1e-12 <= high <= 1
    np.testing.assert_allclose(wilson(1 - mean, count, confidence), (1 - high, 1 - low), atol=1e-9)


@pytest.mark.parametrize(("mean", "count", "confidence"), [(1.1, 3, 0.95), (0.5, 0, 0.95), (0.5, 3, 1.0)])
def test_arguments_out_of_bounds_are_refused(mean, count, confidence):
    with pytest.raises(ValueError, match="from 0 to 1"):
        wilson(mean, count, confidence)
