"""Statistics: hand-worked moments, and estimators checked against counting every subset."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.maths.statistics import (
    majority,
    masked_mean,
    masked_var,
    mean_and_standard_error,
    pass_at_k,
    whiten,
)

NAN = float("nan")


def test_masked_moments_by_hand():
    values, mask = [[1.0, 5.0, NAN], [3.0, 9.0, 3.0]], [[1, 1, 0], [1, 0, 1]]
    assert masked_mean(values, mask) == 3  # 1 5 3 3
    assert masked_mean(values, mask, axis=1).tolist() == [3, 3]
    assert masked_var(values, mask) == pytest.approx(8 / 3)
    assert masked_var(values, mask, unbiased=False) == 2


def test_a_mask_that_keeps_nothing_or_one():
    assert masked_mean([[NAN, 2.0], [4.0, 2.0]], [[0, 0], [1, 0]], axis=1).tolist() == [0, 4]
    assert masked_mean([1.0], [0]) == masked_var([1.0], [0]) == masked_var([7.0], [1]) == 0


def test_a_mask_of_another_shape():
    with pytest.raises(ValueError, match="one shape"):
        masked_mean([1.0, 2.0], [1])


def test_whitening_by_hand():
    np.testing.assert_allclose(whiten([1.0, 2.0, 3.0]), [-1, 0, 1], atol=1e-7)
    np.testing.assert_allclose(whiten([1.0, 2.0, 3.0], shift_mean=False), [1, 2, 3], atol=1e-7)
    np.testing.assert_allclose(whiten([1.0, 3.0], unbiased=False), [-1, 1], atol=1e-7)


def test_one_token_is_left_as_it_is_and_none_stay_none():
    assert whiten([0.7]).tolist() == [0.7]
    assert whiten([]).tolist() == []


def test_equal_advantages_become_zero_and_never_nan():
    np.testing.assert_allclose(whiten([0.1] * 7), np.zeros(7), atol=1e-9)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30))
def test_whitened_values_have_mean_0_and_variance_at_most_1(values):
    whitened = whiten(values)
    assert abs(whitened.mean()) < 1e-6
    assert whitened.var(ddof=1) <= 1 + 1e-9


@pytest.mark.parametrize("bad", [NAN, np.inf])
def test_an_advantage_that_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        whiten([1.0, bad])


@pytest.mark.parametrize("n", range(1, 7))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(n):
    for correct in range(n + 1):
        for k in range(1, n + 1):
            subsets = list(combinations([True] * correct + [False] * (n - correct), k))
            share = sum(map(any, subsets)) / len(subsets)
            assert pass_at_k(n, correct, k) == pytest.approx(share, abs=1e-12)


def test_pass_at_k_over_questions_and_at_sizes_that_overflow():
    np.testing.assert_allclose(pass_at_k([4, 4, 4], [0, 1, 4], 2), [0, 0.5, 1])
    large = pass_at_k(10_000, 1, 5_000)
    assert large == pytest.approx(0.5)


def test_pass_at_k_never_shrinks_as_k_grows():
    assert np.all(np.diff([float(pass_at_k(16, 3, k)) for k in range(1, 17)]) >= 0)


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 1, 5), (4, 1, 0), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_of_numbers_that_cannot_be(n, correct, k):
    with pytest.raises(ValueError, match="1 ≤ k ≤ n"):
        pass_at_k(n, correct, k)


@pytest.mark.parametrize(
    ("answers", "rewards", "expected"),
    [
        (["7", "7", "3"], [1, 1, 0], 1.0),
        (["7", "3", "3"], [1, 0, 0], 0.0),
        (["7", "3"], [1, 0], 0.5),  # a tie: one of them at random
        (["7", "3", "5", "3", "7"], [1, 0, 0, 0, 1], 0.5),
        (["7", None, None], [1, 0, 0], 1.0),  # None does not vote
        ([None, None], [0, 0], 0.0),
        (["7"], [1], 1.0),
        (["7", "7"], [1, 0], 0.5),  # one of the two did not finish
    ],
)
def test_the_majority_answer_earns_its_reward(answers, rewards, expected):
    assert majority(answers, rewards) == expected


def test_a_majority_of_nothing():
    with pytest.raises(ValueError, match="one or more"):
        majority([], [])
    with pytest.raises(ValueError, match="got 2 and 1"):
        majority(["1", "2"], [1.0])


def test_the_standard_error_counts_questions_not_samples():
    mean, error = mean_and_standard_error([0.0, 1.0, 0.5, 0.5])
    assert mean == 0.5
    assert error == pytest.approx(np.sqrt(0.5 / 3) / 2)


def test_a_single_question_says_nothing_about_the_spread():
    mean, error = mean_and_standard_error([0.25])
    assert mean == 0.25
    assert np.isnan(error)


@pytest.mark.parametrize("values", [[], [[1.0]], [NAN]])
def test_values_that_are_not_one_per_question(values):
    with pytest.raises(ValueError, match="one finite value"):
        mean_and_standard_error(values)
