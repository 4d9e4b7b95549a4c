"""Statistics: numbers worked by hand, exhaustive enumeration, and coverage on simulated evaluations."""

import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.maths.statistics import (
    maj_at_k,
    mean_and_standard_error,
    pass_at_k,
    question_means,
    sign_flip_p_value,
    whiten,
)

NAN = float("nan")


def test_whitening_by_hand():
    np.testing.assert_allclose(whiten([1.0, 2.0, 3.0]), [-1, 0, 1], atol=1e-7)
    np.testing.assert_allclose(whiten([1.0, 2.0, 3.0], shift_mean=False), [1, 2, 3], atol=1e-7)
    np.testing.assert_allclose(whiten([1.0, 3.0], unbiased=False), [-1, 1], atol=1e-7)


def test_a_single_value_and_an_empty_array_are_unchanged():
    assert whiten([0.7]).tolist() == [0.7]
    assert whiten([]).tolist() == []


def test_equal_values_are_whitened_to_0_and_never_to_nan():
    np.testing.assert_allclose(whiten([0.1] * 7), np.zeros(7), atol=1e-9)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30))
def test_whitened_values_have_mean_0_and_variance_at_most_1(values):
    whitened = whiten(values)
    assert abs(whitened.mean()) < 1e-6
    assert whitened.var(ddof=1) <= 1 + 1e-9


@pytest.mark.parametrize("bad", [NAN, np.inf])
def test_whitening_refuses_values_that_are_not_finite(bad):
    with pytest.raises(ValueError, match="finite"):
        whiten([1.0, bad])


@pytest.mark.parametrize("n", range(1, 7))
def test_pass_at_k_is_the_fraction_of_subsets_with_a_correct_answer(n):
    for correct in range(n + 1):
        for k in range(1, n + 1):
            subsets = list(combinations([True] * correct + [False] * (n - correct), k))
            fraction = sum(map(any, subsets)) / len(subsets)
            assert pass_at_k(n, correct, k) == pytest.approx(fraction, abs=1e-12)


def test_pass_at_k_of_several_questions_and_of_sample_sizes_whose_binomials_overflow():
    np.testing.assert_allclose(pass_at_k([4, 4, 4], [0, 1, 4], 2), [0, 0.5, 1])
    large = pass_at_k(10_000, 1, 5_000)
    assert large == pytest.approx(0.5)


def test_pass_at_k_never_decreases_with_k():
    assert np.all(np.diff([float(pass_at_k(16, 3, k)) for k in range(1, 17)]) >= 0)


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 1, 5), (4, 1, 0), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_refuses_arguments_out_of_bounds(n, correct, k):
    with pytest.raises(ValueError, match="1 ≤ k ≤ n"):
        pass_at_k(n, correct, k)


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 8)), min_size=1, max_size=6))
def test_pass_at_k_never_decreases_with_unequal_numbers_of_samples(questions):
    n = np.array([n for n, _ in questions])
    correct = np.array([min(n, c) for n, c in questions])
    curve = [pass_at_k(n, correct, np.minimum(n, k)) for k in range(1, 9)]
    assert np.all(np.diff(curve, axis=0) >= -1e-12)
    np.testing.assert_allclose(curve[-1], correct > 0)


def test_pass_at_k_is_unbiased():
    """With 6 samples that are correct with probability p, the mean estimate is 1 − (1 − p)^k."""
    rng = np.random.default_rng(0)
    for p in (0.1, 0.5, 0.8):
        correct = rng.binomial(6, p, 200_000)
        for k in (1, 2, 4, 6):
            estimates = pass_at_k(6, correct, k)
            assert abs(estimates.mean() - (1 - (1 - p) ** k)) < 4 * estimates.std() / np.sqrt(estimates.size)


@pytest.mark.parametrize(
    ("answers", "rewards", "expected"),
    [
        ([7, 7, 3], [1, 1, 0], 1.0),
        ([7, 3, 3], [1, 0, 0], 0.0),
        ([7, 3], [1, 0], 0.5),  # a tie: the mean reward
        ([7, 3, 5, 3, 7], [1, 0, 0, 0, 1], 0.5),
        ([7, -1, -1], [1, 0, 0], 1.0),  # responses without an answer do not count
        ([-1, -1], [0, 0], 0.0),
        ([7], [1], 1.0),
        ([7, 7], [1, 0], 0.5),  # one of the two was cut off
        ([], [], 0.0),
    ],
)
def test_maj_at_k_is_the_reward_of_the_most_frequent_answer(answers, rewards, expected):
    assert maj_at_k([0] * len(answers), answers, rewards, 1).tolist() == [expected]


def test_maj_at_k_counts_each_question_separately():
    # question 0: 7 wins and is correct; 1: no answer; 2: 3 and 7 are tied; 3: no response
    question, answer, reward = [2, 0, 0, 1, 0, 2], [7, 7, 7, -1, 3, 3], [1, 1, 1, 0, 0, 0]
    assert maj_at_k(question, answer, reward, 4).tolist() == [1.0, 0.0, 0.5, 0.0]


def test_maj_at_k_refuses_arrays_of_unequal_lengths():
    with pytest.raises(ValueError, match="one length"):
        maj_at_k([0, 0], [1, 2], [1.0], 1)


def test_question_means_by_hand():
    means = question_means([1, 0, 1, 1], [1.0, 0.5, 0.0, 0.5], 3)
    np.testing.assert_array_equal(means, [0.5, 0.5, NAN])


def test_the_standard_error_is_calibrated_with_clusters_of_unequal_size():
    """95 % intervals cover the true mean 95 % of the time, though questions differ in difficulty and sample size.

    The naive error over responses is too small, because responses to the same question are correlated.
    """
    rng = np.random.default_rng(0)
    trials, questions = 1000, 60
    hits = naive_hits = 0
    for _ in range(trials):
        difficulty = rng.beta(0.5, 0.5, questions)  # mean 1/2
        question = np.repeat(np.arange(questions), rng.integers(1, 9, questions))
        reward = rng.random(question.size) < difficulty[question]
        mean, error = mean_and_standard_error(question_means(question, reward, questions))
        hits += abs(mean - 0.5) < 1.96 * error
        naive_hits += abs(reward.mean() - 0.5) < 1.96 * reward.std(ddof=1) / np.sqrt(reward.size)
    assert 0.93 < hits / trials < 0.97
    assert naive_hits / trials < 0.85


def test_the_standard_error_by_hand():
    mean, error = mean_and_standard_error([0.0, 1.0, 0.5, 0.5])
    assert mean == 0.5
    assert error == pytest.approx(np.sqrt(0.5 / 3) / 2)


def test_a_single_question_has_no_standard_error():
    mean, error = mean_and_standard_error([0.25])
    assert mean == 0.25
    assert np.isnan(error)


@pytest.mark.parametrize("values", [[], [[1.0]], [NAN]])
def test_the_standard_error_refuses_anything_but_one_finite_value_per_question(values):
    with pytest.raises(ValueError, match="one finite value"):
        mean_and_standard_error(values)


def test_with_one_response_per_question_the_p_value_is_that_of_mcnemars_test():
    """9 wins, 2 losses: P(Bin(11, 1/2) ≥ 9 or ≤ 2) = 2 (55 + 11 + 1) / 2¹¹."""
    differences = [1.0] * 9 + [-1.0] * 2 + [0.0] * 50
    assert sign_flip_p_value(differences) == pytest.approx(134 / 2048)


@given(st.lists(st.sampled_from([-1, -0.75, -0.5, 1 / 3, 0, 0.25, 0.5, 1]), max_size=9))
def test_the_p_value_is_the_fraction_of_sign_patterns_at_least_as_extreme(differences):
    sums = [np.dot(signs, differences) for signs in product([1, -1], repeat=len(differences))]
    fraction = np.mean(np.abs(sums) >= abs(np.sum(differences)) - 1e-9)
    assert sign_flip_p_value(differences) == pytest.approx(fraction, abs=1e-9)


def test_differences_without_a_common_unit_use_sampled_signs_reproducibly():
    differences = np.random.default_rng(0).normal(0.3, 1, 40)
    mean, error = mean_and_standard_error(differences)
    normal = math.erfc(abs(mean / error) / math.sqrt(2))
    assert sign_flip_p_value(differences) == pytest.approx(normal, abs=0.02)
    assert sign_flip_p_value(differences) == sign_flip_p_value(differences)


def test_the_p_value_is_calibrated_for_equal_evaluations_and_small_for_different_ones():
    rng = np.random.default_rng(0)
    equal = rng.binomial(4, 0.5, (400, 2, 30)) / 4
    found = np.array([sign_flip_p_value(a - b) for a, b in equal])
    assert 0.02 < np.mean(found <= 0.05) < 0.07
    different = rng.binomial(4, 0.7, (50, 30)) / 4 - rng.binomial(4, 0.4, (50, 30)) / 4
    assert np.mean([sign_flip_p_value(one) <= 0.05 for one in different]) > 0.95


def test_the_p_value_is_never_0_and_is_1_without_differences():
    assert 0 < sign_flip_p_value(np.full(20_000, 0.125)) < 1e-12
    assert sign_flip_p_value([]) == sign_flip_p_value([0.0, 0.0]) == 1.0


def test_the_p_value_refuses_values_that_are_not_finite():
    with pytest.raises(ValueError, match="finite difference"):
        sign_flip_p_value([0.5, NAN])
