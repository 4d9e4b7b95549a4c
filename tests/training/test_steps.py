"""The figures of the closing summary of a training call."""

from __future__ import annotations

import pytest

from stages.training.steps import summarize


def test_means_over_unequal_steps_are_weighted_by_what_they_are_means_of():
    """Two responses with the mean 0.5 and one with 0 have the mean 1/3; 30 and 10 tokens weight the entropy."""
    found = summarize(
        [
            {"reward": 0.5, "responses/graded": 2.0, "entropy": 1.0, "tokens/trained": 30.0, "tokens/fed": 60.0},
            {"reward": 0.0, "responses/graded": 1.0, "entropy": 2.0, "tokens/trained": 10.0, "tokens/fed": 20.0},
        ]
    )
    assert found["reward"] == pytest.approx(1 / 3)
    assert found["entropy"] == pytest.approx(1.25)
    assert found["tokens/fed_per_trained"] == 2.0
