"""Test the expected numbers of tokens with numbers worked by hand, and against simulated trees and rollouts."""

from __future__ import annotations

import numpy as np
import pytest

from stages.maths.expected_tokens import first_of_equal, rest_tokens, survival, tree_tokens
from stages.maths.ragged import Ragged

LENGTHS = np.array([1, 2, 2, 4])
EQUAL = np.ones(4)


def test_survival_is_the_share_of_longer_responses():
    assert survival(LENGTHS, EQUAL, 5).tolist() == [1, 0.75, 0.25, 0.25, 0]
    assert survival(LENGTHS, EQUAL, 3).tolist() == [1, 0.75, 0.25]
    assert survival(LENGTHS, np.array([3, 0, 0, 1]), 4).tolist() == [1, 0.25, 0.25, 0.25]


def test_the_sum_of_survival_is_the_mean_length():
    assert survival(LENGTHS, EQUAL, 5).sum() == LENGTHS.mean()


def test_without_responses_there_is_no_survival():
    with pytest.raises(ValueError, match="at least one response"):
        survival(np.array([], int), np.array([]), 4)


def test_a_tree_of_one_level_is_independent_responses():
    alive = survival(LENGTHS, EQUAL, 5)
    assert tree_tokens(alive, [3], 2) == 3 * LENGTHS.mean()


def test_a_tree_multiplies_the_paths_of_each_level():
    alive = survival(LENGTHS, EQUAL, 5)
    assert tree_tokens(alive, [2, 3], 2) == 2 * (1 + 0.75) + 6 * (0.25 + 0.25)
    assert tree_tokens(alive, [2, 3, 2], 1) == 2 * 1 + 6 * 0.75 + 12 * (0.25 + 0.25)
    assert tree_tokens(alive, [2, 3], 9) == 2 * 2.25  # no response reaches the second level


def test_a_simulated_tree_has_the_expected_tokens():
    rng, stop, limit = np.random.default_rng(0), 0.2, 12
    lengths = np.minimum(rng.geometric(stop, 100_000), limit)

    def grow(branches: list[int], start: int) -> int:
        total = 0
        for _ in range(branches[0]):
            own = 0
            most = limit - start if len(branches) == 1 else min(4, limit - start)
            ended = False
            while own < most and not ended:
                own, ended = own + 1, rng.random() < stop
            total += own
            if not ended and len(branches) > 1 and start + own < limit:
                total += grow(branches[1:], start + own)
        return total

    found = np.mean([grow([2, 3, 2], 0) for _ in range(3000)])
    assert tree_tokens(survival(lengths, np.ones(lengths.size), limit), [2, 3, 2], 4) == pytest.approx(found, rel=0.03)


def test_a_rollout_takes_the_rest_of_the_responses_that_are_so_long():
    rest = rest_tokens(survival(LENGTHS, EQUAL, 5))
    assert rest.tolist() == [2.25, (0.75 + 0.25 + 0.25) / 0.75, 2, 1, 0]


def test_equal_states_of_a_question_are_counted_once():
    ids = Ragged.of(
        [np.array([1, 2, 3], np.int32), np.array([1, 2, 4], np.int32), np.array([1, 2], np.int32)], np.int32
    )
    rows, ends = np.array([0, 0, 1, 1, 2]), np.array([2, 3, 2, 3, 2])
    assert first_of_equal(ids, rows, ends, ["a", "a", "b"]).tolist() == [True, True, False, True, True]
    assert first_of_equal(ids, rows, ends, ["a", "a", "a"]).tolist() == [True, True, False, True, False]
