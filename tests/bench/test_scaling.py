"""The simulation of samplers gives the times that cases worked by hand have."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.sampling.protocol import Request
from tests.bench.scaling import Layout, Rates, engine_steps, simulate

PLAIN = Rates(step=1.0, row=0.0)


def call(prompt: int, *keys: int) -> list[Request]:
    return [Request(np.array([prompt], np.int32), keys, 99)]


@pytest.mark.parametrize(
    ("lengths", "rows", "steps"),
    [([3, 1, 2], 2, 3), ([3, 1, 2], 1, 6), ([3, 1, 2], 3, 3), ([2, 2, 2], 2, 4), ([], 4, 0)],
)
def test_a_row_whose_sample_ends_takes_the_next_one(lengths: list[int], rows: int, steps: int):
    assert engine_steps(lengths, rows) == steps


def test_one_worker_takes_the_sum_of_steps_rows_grades_and_commits():
    """4 samples of 5 tokens in 2 rows: 10 steps, 20 row steps, 4 grades, one commit, weights."""
    rates = Rates(step=1.0, row=0.1, unit=0.25, grade=0.01, commit=0.2, load=3.0)
    outcome = simulate([[call(0, 0, 1, 2, 3)]], np.full(4, 5), Layout(workers=1, lanes=1, least=16, rows=2), rates)
    assert outcome.seconds == pytest.approx(3.0 + 0.25 + 10 + 2.0 + 0.04 + 0.2)
    assert outcome.busy == pytest.approx(0.25 + 10 + 2.0)


def test_two_workers_take_half_the_time_of_equal_units():
    """Two chunks of one unit each, of 8 samples of 6 tokens in rows for all."""
    chunks = [[call(0, *range(8))], [call(1, *range(8, 16))]]
    lengths = np.full(16, 6)
    one = simulate(chunks, lengths, Layout(1, 16, 8, 8), PLAIN)
    two = simulate(chunks, lengths, Layout(2, 16, 8, 8), PLAIN)
    assert (one.seconds, two.seconds) == (12.0, 6.0)
    assert one.busy == two.busy == 12.0


def test_one_long_response_bounds_any_number_of_workers():
    """32 samples of one token and one of 100: 64 workers cannot end before the long one."""
    outcome = simulate([[call(0, *range(33))]], np.array([1] * 32 + [100]), Layout(64, 16, 1, 8), PLAIN)
    assert outcome.seconds == 100.0
    assert outcome.limit == "longest response"


def test_levels_of_a_tree_wait_for_each_other_and_other_chunks_fill_the_gap():
    """Two trees with a level of 4 steps and a level of 2, on one worker: 12 steps; on two workers: 6."""
    trees = [[call(0, 0), call(0, 1)], [call(1, 2), call(1, 3)]]
    lengths = np.array([4, 2, 4, 2])
    assert simulate(trees, lengths, Layout(1, 16, 1, 1), PLAIN).seconds == 12.0
    assert simulate(trees, lengths, Layout(2, 16, 1, 1), PLAIN).seconds == 6.0
    assert simulate(trees[:1], lengths, Layout(2, 16, 1, 1), PLAIN).seconds == 6.0, "levels are in sequence"


def test_a_slow_command_is_the_limit():
    """Four chunks of one step each on four workers; each takes 5 s to write, one after the other: 1 + 4 x 5."""
    chunks = [[call(i, i)] for i in range(4)]
    outcome = simulate(chunks, np.ones(4, np.int64), Layout(4, 16, 1, 1), Rates(step=1.0, row=0.0, commit=5.0))
    assert outcome.seconds == 21.0
    assert outcome.limit == "command"


def test_large_units_leave_workers_without_work():
    """8 equal samples of each of 8 prompts, on 8 workers with a row each: 8 steps in units of 8, 32 in units of 32."""
    requests = [request for prompt in range(8) for request in call(prompt, *range(8 * prompt, 8 * prompt + 8))]
    chunks, lengths = [[requests]], np.ones(64, np.int64)
    assert simulate(chunks, lengths, Layout(8, 16, 8, 1), PLAIN).seconds == 8.0
    assert simulate(chunks, lengths, Layout(8, 16, 32, 1), PLAIN).seconds == 32.0


@given(
    sizes=st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=20), min_size=1, max_size=6),
    workers=st.integers(1, 9),
    least=st.integers(1, 8),
)
def test_no_schedule_undercuts_the_bounds(sizes: list[list[int]], workers: int, least: int):
    lengths = np.array([length for chunk in sizes for length in chunk], np.int64)
    ends = np.cumsum([len(chunk) for chunk in sizes])
    chunks = [[call(i, *range(end - len(chunk), end))] for i, (chunk, end) in enumerate(zip(sizes, ends, strict=True))]
    rates = Rates(step=1.0, row=0.125, unit=0.5, grade=0.25, commit=0.5, load=2.0)
    outcome = simulate(chunks, lengths, Layout(workers, 16, least, 4), rates)
    assert outcome.seconds >= max(outcome.bounds.values()) - 1e-9
    assert outcome.seconds <= rates.load + outcome.busy + outcome.bounds["command"] + 1e-9
