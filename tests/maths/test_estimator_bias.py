"""Every estimator against the exact value on a Markov chain where V is a power of its matrix: bias and variance.

What is claimed of V̂ holds for each of the states that a stretch may end in, not just on average over them.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from stages.maths.prefixes import responses_with_prefix, shared_prefixes
from tests.bench.bench_estimators import (
    LENGTH,
    STRETCH,
    Estimates,
    adaptive,
    monte_carlo,
    paths,
    prefix_tree,
    slope,
    tree,
    true_value,
)

GROUPS = 4000


def draw(estimator, seed: int = 1) -> Estimates:
    return estimator(GROUPS, np.random.default_rng(seed))


def errors_by_state(found: Estimates) -> list[np.ndarray]:
    return [(found.value - found.true_value)[found.state == state] for state in range(3)]


def test_the_exact_value_is_what_paths_come_to():
    for state in range(3):
        ends = paths(np.full(20_000, state), LENGTH - STRETCH, np.random.default_rng(0))[:, -1]
        truth = true_value(np.array([state]), STRETCH)[0]
        assert abs(np.mean(ends == 2) - truth) < 3 * np.sqrt(truth * (1 - truth) / ends.size)


@pytest.mark.parametrize(
    "estimator",
    [monte_carlo(4), monte_carlo(9), tree((4, 4, 4)), tree((2, 5, 3)), prefix_tree(8)],
    ids=["monte-carlo 4", "monte-carlo 9", "tree 4-4-4", "tree 2-5-3", "prefix-tree"],
)
def test_values_are_unbiased_at_every_state(estimator):
    for error in errors_by_state(draw(estimator)):
        assert error.size > 300
        assert abs(error.mean()) < 3 * error.std() / np.sqrt(error.size)


@pytest.mark.parametrize("rollouts", [4, 9])
def test_the_variance_of_monte_carlo_is_that_of_a_mean(rollouts):
    found = draw(monte_carlo(rollouts))
    for state, error in enumerate(errors_by_state(found)):
        truth = true_value(np.array([state]), STRETCH)[0]
        assert np.square(error).mean() == pytest.approx(truth * (1 - truth) / rollouts, rel=0.15)


def test_a_tree_spends_its_leaves_better_than_as_many_rollouts_per_state_cost():
    """V̂ of a node of 4-4-4 rests on 16 leaves that share 4 stems: closer than 4 rollouts, not as close as 16."""
    spread = [np.square(draw(one).value - draw(one).true_value).mean() for one in (monte_carlo(4), tree((4, 4, 4)))]
    independent = np.square(draw(monte_carlo(16)).value - draw(monte_carlo(16)).true_value).mean()
    assert independent < spread[1] < spread[0]


@pytest.mark.parametrize("branches", [2, 4])
def test_the_mean_of_the_siblings_draws_advantages_to_0_and_leaving_oneself_out_does_not(branches):
    """Among n siblings one's own value is a part of their mean: E[Â | state] = (1 − 1/n) · A."""
    fit, error = slope(draw(tree((branches, 4, 4))))
    assert abs(fit - (1 - 1 / branches)) < 3 * error
    assert fit < 1 - 3 * error
    fit, error = slope(draw(tree((branches, 4, 4), "leave-one-out")))
    assert abs(fit - 1) < 3 * error


def test_monte_carlo_advantages_are_unbiased():
    fit, error = slope(draw(monte_carlo(9)))
    assert abs(fit - 1) < 3 * error


def test_stopping_where_rollouts_agree_draws_values_to_0_and_1():
    """What the documentation admits: the mean at a moment chosen by the outcomes is not unbiased."""
    found = draw(adaptive(4, 32, 0.4))
    fit = np.polyfit(found.true_value, found.value, 1)[0]
    assert fit > 1.03
    assert (
        np.abs(found.value - found.true_value).mean()
        < np.abs(draw(monte_carlo(9)).value - draw(monte_carlo(9)).true_value).mean()
    )


def test_states_chosen_because_responses_part_there_are_biased():
    """What the documentation admits, by going through every group of two: V is 0.9, V̂ is 0.5 wherever they part."""
    chances = {1: 0.9, 2: 0.1}  # the second token; 1 is right
    weight, parted, always = 0.0, 0.0, 0.0
    for a, b in itertools.product(chances, repeat=2):
        order, common = shared_prefixes([np.array([7, token], np.int32) for token in (a, b)])
        first, count = responses_with_prefix(common, np.array([0]), np.array([1]))
        value = np.mean([(a, b)[i] == 1 for i in order[first[0] : first[0] + count[0]]])
        chance = chances[a] * chances[b]
        always += chance * value
        weight, parted = weight + chance * (common[0] == 1), parted + chance * value * (common[0] == 1)
    assert always == pytest.approx(0.9)
    assert parted / weight == pytest.approx(0.5)
