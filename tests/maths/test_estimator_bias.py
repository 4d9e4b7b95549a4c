"""Bias and variance of every estimator on a Markov chain, whose exact V follows from powers of its transition matrix.

Bias is tested at each state in which a segment may end, not only on average over the states.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from stages.maths.branch_points import most_doubtful
from stages.maths.prefixes import responses_with_prefix, shared_prefixes
from tests.bench.bench_estimators import (
    CHAIN,
    LENGTH,
    SEGMENT,
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


def test_the_exact_value_agrees_with_simulated_paths():
    for state in range(3):
        ends = paths(np.full(20_000, state), LENGTH - SEGMENT, np.random.default_rng(0))[:, -1]
        exact = true_value(np.array([state]), SEGMENT)[0]
        assert abs(np.mean(ends == 2) - exact) < 3 * np.sqrt(exact * (1 - exact) / ends.size)


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
def test_the_variance_of_monte_carlo_is_the_variance_of_a_mean(rollouts):
    found = draw(monte_carlo(rollouts))
    for state, error in enumerate(errors_by_state(found)):
        exact = true_value(np.array([state]), SEGMENT)[0]
        assert np.square(error).mean() == pytest.approx(exact * (1 - exact) / rollouts, rel=0.15)


def test_a_tree_is_more_accurate_than_rollouts_of_the_same_cost():
    """V̂ of a node of 4-4-4 uses 16 leaves with 4 common stems: more accurate than 4 rollouts, less than 16."""
    errors = [np.square(draw(one).value - draw(one).true_value).mean() for one in (monte_carlo(4), tree((4, 4, 4)))]
    independent = np.square(draw(monte_carlo(16)).value - draw(monte_carlo(16)).true_value).mean()
    assert independent < errors[1] < errors[0]


@pytest.mark.parametrize("branches", [2, 4])
def test_the_mean_baseline_shrinks_advantages_and_leave_one_out_does_not(branches):
    """The mean of n siblings includes the own value: E[Â | state] = (1 − 1/n) · A."""
    fit, error = slope(draw(tree((branches, 4, 4))))
    assert abs(fit - (1 - 1 / branches)) < 3 * error
    assert fit < 1 - 3 * error
    fit, error = slope(draw(tree((branches, 4, 4), "leave-one-out")))
    assert abs(fit - 1) < 3 * error


def test_monte_carlo_advantages_are_unbiased():
    fit, error = slope(draw(monte_carlo(9)))
    assert abs(fit - 1) < 3 * error


def test_adaptive_stopping_biases_values_towards_0_and_1():
    """Documented bias: the decision to stop depends on the outcomes."""
    found = draw(adaptive(4, 32, 0.4))
    fit = np.polyfit(found.true_value, found.value, 1)[0]
    assert fit > 1.03
    assert (
        np.abs(found.value - found.true_value).mean()
        < np.abs(draw(monte_carlo(9)).value - draw(monte_carlo(9)).true_value).mean()
    )


def test_values_at_branching_points_of_a_group_are_biased():
    """Documented bias, by enumerating all groups of two: V is 0.9, but V̂ is 0.5 where the responses branch."""
    chances = {1: 0.9, 2: 0.1}  # of the second token; 1 is correct
    branch_chance, branch_sum, total = 0.0, 0.0, 0.0
    for a, b in itertools.product(chances, repeat=2):
        order, common = shared_prefixes([np.array([7, token], np.int32) for token in (a, b)])
        first, count = responses_with_prefix(common, np.array([0]), np.array([1]))
        value = np.mean([(a, b)[i] == 1 for i in order[first[0] : first[0] + count[0]]])
        chance = chances[a] * chances[b]
        total += chance * value
        branch_chance += chance * (common[0] == 1)
        branch_sum += chance * value * (common[0] == 1)
    assert total == pytest.approx(0.9)
    assert branch_sum / branch_chance == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("doubt", "bias"), [("surprisal", (0.21, 0.19, -0.20)), ("entropy", (0.0, 0.0, 0.28))], ids=["surprisal", "entropy"]
)
def test_only_fresh_branches_are_random_where_a_whole_response_chose_the_place(doubt: str, bias: tuple[float, ...]):
    """A tree from a first chain, by state at its cut: V of the fresh branch is unbiased, that of the chain itself not.

    The place of the largest doubt is chosen by the whole response, so the choice says something about what follows.
    """
    random, groups = np.random.default_rng(3), 20_000
    path = paths(np.ones(groups, np.int64), LENGTH, random)
    before = np.concatenate([np.ones((groups, 1), np.int64), path[:, :-1]], axis=1)
    surprisal, entropy = -np.log(CHAIN[before, path]), -(CHAIN * np.log(CHAIN)).sum(axis=1)[before]
    cut = np.array([most_doubtful(row, 1)[0] for row in (surprisal if doubt == "surprisal" else entropy)])
    state = path[np.arange(groups), cut - 1]
    true = np.array([true_value(state[i : i + 1], cut[i])[0] for i in range(groups)])
    fresh = (paths(state, LENGTH, random)[np.arange(groups), LENGTH - cut - 1] == 2) - true
    own = (path[:, -1] == 2) - true
    for number, expected in enumerate(bias):
        here = state == number
        assert abs(fresh[here].mean()) < 3 * fresh[here].std() / np.sqrt(here.sum())
        assert own[here].mean() == pytest.approx(expected, abs=0.03)
