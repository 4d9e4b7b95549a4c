"""Audits of value estimates: numbers worked by hand, and calibration on a Markov chain whose values are known."""

from __future__ import annotations

import numpy as np
import pytest

from stages.maths.audit import calibration, errors, mask_shares, mean_ranks, signs
from stages.maths.intervals import wilson
from tests.bench.bench_estimators import SEGMENT, true_value


def test_calibration_pools_the_rewards_of_a_bin():
    found = calibration([0.0, 0.05, 0.5, 1.0], [0.1, 0.3, 0.6, 0.9], [10, 30, 10, 10])
    assert found.states.tolist() == [2, 1, 1]
    assert found.estimate == pytest.approx([0.025, 0.5, 1.0])
    assert found.reference == pytest.approx([(1 + 9) / 40, 0.6, 0.9])
    low, high = wilson([0.25, 0.6, 0.9], [40, 10, 10])
    assert found.low == pytest.approx(low)
    assert found.high == pytest.approx(high)


def test_a_value_outside_of_the_unit_interval_or_without_rollouts_is_refused():
    for arguments in (([1.1], [0.5], [1]), ([0.5], [-0.1], [1]), ([0.5], [0.5], [0]), ([0.5, 0.5], [0.5], [1])):
        with pytest.raises(ValueError, match=r"expected|requires"):
            calibration(*arguments)


def test_errors_worked_by_hand():
    assert mean_ranks([3.0, 1.0, 3.0, 0.0]).tolist() == [2.5, 1.0, 2.5, 0.0]
    found = errors([0.0, 0.5, 1.0], [0.1, 0.9, 0.7])
    assert found.absolute == pytest.approx((0.1 + 0.4 + 0.3) / 3)
    assert found.rank == pytest.approx(0.5)  # ranks 0 1 2 against 0 2 1: 1 − 6·2/(3·8)
    assert np.isnan(errors([0.5, 0.5], [0.0, 1.0]).rank)
    with pytest.raises(ValueError, match="at least one"):
        errors([], [])


def test_signs_count_only_segments_whose_reference_is_certain():
    found = signs([0.5, 0.0, 0.2, -0.1, 0.3], [0.4, 0.3, -0.2, -0.5, 0.01], [0.1, 0.1, 0.05, 0.1, 0.1])
    assert found == (4, 0.5, 0.25, 0.25)  # the fifth is within two standard errors of 0
    assert signs([1.0], [0.0], [0.0]).segments == 0


def test_the_share_of_a_mask_worked_by_hand():
    logprobs = np.log([0.95, 0.4, 0.99, 0.85, 0.97])
    shares = mask_shares([-0.6, 0.3, 0.1], np.array([0, 0, 1, 1, 2]), logprobs, [0.5, 0.9, 1.0])
    assert [one.tokens for one in shares] == pytest.approx([0.2, 0.4, 1.0])
    assert [one.advantage for one in shares] == pytest.approx([0.6, 0.9, 1.0])


@pytest.mark.parametrize("rollouts", [4, 64])
def test_the_audit_finds_the_known_error_of_a_markov_chain(rollouts: int):
    random = np.random.default_rng(0)
    state = random.integers(0, 3, 4000)
    truth = true_value(state, SEGMENT)
    estimate = random.binomial(rollouts, truth) / rollouts
    reference = random.binomial(256, truth) / 256
    # E|V̂ − V| of a binomial mean, from its distribution; the reference adds an error of at most 1/32
    deviation = np.sqrt(truth * (1 - truth) * (1 / rollouts + 1 / 256)).mean()
    assert errors(estimate, reference).absolute == pytest.approx(deviation * np.sqrt(2 / np.pi), rel=0.12)
    # Conditioned on the estimate, the mean reference is the posterior mean of V, here over three equally likely states
    values = true_value(np.arange(3), SEGMENT)
    found = calibration(estimate, reference, np.full(state.size, 256), bins=rollouts + 1)
    inside = 0
    for value, low, high in zip(found.estimate, found.low, found.high, strict=True):
        count = round(value * rollouts)
        likelihood = values**count * (1 - values) ** (rollouts - count)
        expected = (likelihood * values).sum() / likelihood.sum()
        inside += low - 0.03 <= expected <= high + 0.03
    assert inside >= 0.9 * found.states.size
