"""Partitions: responses are covered exactly and in order, and boundaries are at the positions of the paper."""

import re
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.errors import UserError
from stages.maths.partition import (
    Segments,
    delimiter_starts,
    find_cutpoints,
    partition_at_boundaries,
    partition_by_count,
    partition_by_cutpoints,
    partition_by_length,
    partition_by_token,
    partition_by_trajectory,
    segment_cutpoints,
)
from stages.maths.ragged import Ragged


def rows(segments: Segments) -> list[tuple[int, int, int]]:
    return list(zip(segments.trajectory.tolist(), segments.start.tolist(), segments.end.tolist(), strict=True))


def spans(segments: Segments) -> list[tuple[int, int]]:
    return [(start, end) for _, start, end in rows(segments)]


def flags(*responses: str) -> tuple[list[int], np.ndarray]:
    """Return lengths and cutpoint flags of responses such as "..x", where x is a cutpoint."""
    return [len(response) for response in responses], np.array([token == "x" for token in "".join(responses)], np.bool_)


# Cutpoints


def test_a_cutpoint_is_strictly_below_rho():
    below, above = np.nextafter(np.log(0.9), -1), np.nextafter(np.log(0.9), 0)
    logprobs = Ragged.of([[np.log(0.9), below, above], [0.0, -np.inf]], np.float64)
    assert find_cutpoints(logprobs, 0.9).tolist() == [False, True, False, False, True]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("rho", [0.9, 0.5, 1.0, 1e-6, 0.3])
def test_the_comparison_is_exact_at_any_precision(dtype, rho):
    near = dtype(np.log(rho))
    grid = [near, np.nextafter(near, dtype(-np.inf)), np.nextafter(near, dtype(np.inf)), dtype(0), dtype(-9)]
    grid = [value for value in grid if value <= 0]
    expected = [float(value) < float(np.log(rho)) for value in grid]
    assert find_cutpoints(Ragged.of([grid], dtype), rho).tolist() == expected


def test_with_rho_1_every_uncertain_token_is_a_cutpoint():
    assert find_cutpoints(Ragged.of([[0.0, -1e-30]], np.float64), 1.0).tolist() == [False, True]


def test_a_view_is_read_from_its_offsets():
    sliced = Ragged(np.array([-9.0, 0.0, -1.0, -9.0]), np.array([1, 3]))
    assert find_cutpoints(sliced, 0.9).tolist() == [False, True]


@pytest.mark.parametrize("rho", [0.0, -0.1, 1.1, float("nan")])
def test_rho_out_of_range_is_refused(rho):
    with pytest.raises(ValueError, match="rho"):
        find_cutpoints(Ragged.of([[-1.0]], np.float32), rho)


@pytest.mark.parametrize("bad", [float("nan"), 0.9, float("inf")])
def test_values_that_are_not_log_probabilities_are_located(bad):
    with pytest.raises(UserError, match="token 1 of row 2"):
        find_cutpoints(Ragged.of([[-1.0], [], [-1.0, bad]], np.float32), 0.9)


# Cutpoint partition, by hand


@pytest.mark.parametrize(
    ("response", "interval", "expected"),
    [
        ("..x.x..x.", 1, [(0, 2), (2, 4), (4, 7), (7, 9)]),
        ("..x.x..x.", 2, [(0, 2), (2, 7), (7, 9)]),  # before the 1st and the 3rd
        ("..x.x..x.", 3, [(0, 2), (2, 9)]),
        ("..x.x..x.", 5, [(0, 2), (2, 9)]),
        ("x.x", 1, [(0, 2), (2, 3)]),  # the first and the last token are cutpoints
        ("x.x", 2, [(0, 3)]),
        ("....", 2, [(0, 4)]),  # no cutpoint
        ("...x", 2, [(0, 3), (3, 4)]),
        ("x", 1, [(0, 1)]),
        (".", 1, [(0, 1)]),
        ("", 1, [(0, 0)]),
    ],
)
def test_segments_begin_at_every_kth_cutpoint(response, interval, expected):
    assert spans(partition_by_cutpoints(*flags(response), interval)) == expected


def test_cutpoints_are_counted_separately_in_every_response():
    lengths, is_cutpoint = flags("x.x", "", ".x.x", ".")
    segments = partition_by_cutpoints(lengths, is_cutpoint, 2)
    assert rows(segments) == [(0, 0, 3), (1, 0, 0), (2, 0, 1), (2, 1, 4), (3, 0, 1)]
    assert [row.tolist() for row in segment_cutpoints(segments, lengths, is_cutpoint)] == [[0, 2], [], [], [1, 3], []]
    assert segments.number.tolist() == [0, 0, 0, 1, 0]
    assert segments.is_first.tolist() == [True, True, True, False, True]
    assert segments.is_last.tolist() == [True, True, False, True, True]


# The other partitions, by hand


def test_by_length_the_last_segment_has_the_remaining_tokens():
    assert rows(partition_by_length([7, 0, 3, 1], 3)) == [
        (0, 0, 3),
        (0, 3, 6),
        (0, 6, 7),
        (1, 0, 0),
        (2, 0, 3),
        (3, 0, 1),
    ]


def test_by_count_the_longer_segments_come_first():
    assert spans(partition_by_count([8], 3)) == [(0, 3), (3, 6), (6, 8)]
    assert spans(partition_by_count([2], 5)) == [(0, 1), (1, 2)]
    assert rows(partition_by_count([0, 1], 4)) == [(0, 0, 0), (1, 0, 1)]


def test_by_token_and_by_trajectory():
    assert rows(partition_by_token([2, 0, 1])) == [(0, 0, 1), (0, 1, 2), (1, 0, 0), (2, 0, 1)]
    assert rows(partition_by_trajectory([2, 0, 1])) == [(0, 0, 2), (1, 0, 0), (2, 0, 1)]


def test_at_boundaries_the_start_of_the_response_is_added():
    starts = Ragged.of([[2], [], [0, 1], []], np.int32)
    assert rows(partition_at_boundaries([4, 3, 2, 0], starts)) == [
        (0, 0, 2),
        (0, 2, 4),
        (1, 0, 3),
        (2, 0, 1),
        (2, 1, 2),
        (3, 0, 0),
    ]


@pytest.mark.parametrize("starts", [[4], [-1], [2, 2], [2, 1], [0, 4]])
def test_invalid_boundaries_are_refused_with_the_response(starts):
    with pytest.raises(UserError, match=r"\[0, 4\), the tokens of response 1"):
        partition_at_boundaries([4, 4], Ragged.of([[3], starts], np.int64))


def test_boundaries_of_the_wrong_number_or_type_are_refused():
    with pytest.raises(UserError, match="2 responses; got 1"):
        partition_at_boundaries([4, 4], Ragged.of([[1]], np.int64))
    with pytest.raises(UserError, match="integers"):
        partition_at_boundaries([4], Ragged.of([[1.0]], np.float64))


@pytest.mark.parametrize(
    ("tokens", "pattern", "expected"),
    [
        (["a", "\n", "b", "\n", "c"], "\n", [2, 4]),
        (["a", "\n"], "\n", []),  # nothing follows the match
        (["a\nb", "c"], "\n", [1]),  # the token with text of both sides belongs to the left segment
        (["a", "\n", "\n", "b"], "\n+", [3]),
        (["x", "", "\n", "", "b"], "\n", [3]),  # a token without text begins where the match ends
        ([". ", "So", ".", " ", "Then"], r"\. ?", [1, 4]),
        (["ab"], "z", []),
        ([], "\n", []),
    ],
)
def test_delimiters_split_at_the_next_token(tokens, pattern, expected):
    assert delimiter_starts(tokens, re.compile(pattern)) == expected


def test_parameters_below_1_are_refused():
    for partition in (
        lambda: partition_by_length([3], 0),
        lambda: partition_by_count([3], 0),
        lambda: partition_by_cutpoints(*flags("x"), 0),
    ):
        with pytest.raises(ValueError, match="at least 1; got 0"):
            partition()


def test_flags_of_the_wrong_number_are_refused():
    with pytest.raises(ValueError, match="expected 3 flags"):
        partition_by_cutpoints([3], np.zeros(2, np.bool_), 1)


# Properties

responses = st.lists(st.text("x.", max_size=12), max_size=6)
PARTITIONS = {
    "cutpoints": lambda lengths, is_cutpoint, k: partition_by_cutpoints(lengths, is_cutpoint, k),
    "fixed": lambda lengths, _, k: partition_by_length(lengths, k),
    "count": lambda lengths, _, k: partition_by_count(lengths, k),
    "token": lambda lengths, _, k: partition_by_token(lengths),
    "trajectory": lambda lengths, _, k: partition_by_trajectory(lengths),
    "boundaries": lambda lengths, _, k: partition_at_boundaries(
        lengths, Ragged.of([range(0, n, k) for n in lengths], np.int64)
    ),
}


@pytest.mark.parametrize("name", PARTITIONS)
@given(responses=responses, k=st.integers(1, 5))
def test_segments_cover_every_response_exactly_and_in_order(name, responses, k):
    lengths, is_cutpoint = flags(*responses)
    segments = PARTITIONS[name](lengths, is_cutpoint, k)
    for i, response in enumerate(responses):
        own = [(start, end) for trajectory, start, end in rows(segments) if trajectory == i]
        assert [token for start, end in own for token in range(start, end)] == list(range(len(response)))
        assert all(start < end for start, end in own) or own == [(0, 0)]
    assert np.all(np.diff(segments.trajectory) >= 0)

    cutpoints = segment_cutpoints(segments, lengths, is_cutpoint)
    for (trajectory, start, end), found in zip(rows(segments), cutpoints, strict=True):
        assert found.tolist() == [t for t in range(start, end) if responses[trajectory][t] == "x"]
    assert cutpoints.values.dtype == np.int32


@pytest.mark.parametrize("name", PARTITIONS)
@given(responses=responses, k=st.integers(1, 5), seed=st.randoms())
def test_permuting_responses_permutes_segments(name, responses, k, seed):
    order = list(range(len(responses)))
    seed.shuffle(order)
    partition = PARTITIONS[name]
    straight = rows(partition(*flags(*responses), k))
    shuffled = rows(partition(*flags(*(responses[i] for i in order)), k))
    assert shuffled == [(new, s, e) for new, old in enumerate(order) for i, s, e in straight if i == old]


@given(response=st.text("x.", min_size=1, max_size=9), interval=st.integers(1, 4))
def test_the_cutpoint_partition_minimizes_the_sum_of_squared_counts(response, interval):
    def counts(borders: tuple[int, ...]) -> list[int]:
        edges = (0, *borders, len(response))
        return [response[a:b].count("x") for a, b in pairwise(edges)]

    def cost(borders: tuple[int, ...]) -> int:
        return sum(c * c for c in counts(borders))

    segments = partition_by_cutpoints(*flags(response), interval)
    ours = tuple(segments.start[1:].tolist())
    everything = [b for n in range(len(response)) for b in combinations(range(1, len(response)), n)]
    # Among all partitions whose segments, except the last, have at least k cutpoints …
    assert cost(ours) == min(cost(b) for b in everything if all(c >= interval for c in counts(b)[:-1]))
    # … and, if every segment has exactly k, among all partitions with as many segments that have cutpoints.
    holding = [c for c in counts(ours) if c]
    if holding and set(holding) == {interval}:
        assert cost(ours) == min(cost(b) for b in everything if sum(c > 0 for c in counts(b)) == len(holding))
