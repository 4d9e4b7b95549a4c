"""Requests are divided into units that cover every sample once, keep prompts together and get smaller."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages.sampling.protocol import Request
from stages.sampling.ray.units import divide_requests


def request(prompt: int, response: int, keys: int, first_key: int = 0) -> Request:
    prefix = np.array([prompt, prompt, *range(response)], np.int32)
    return Request(prefix, tuple(range(first_key, first_key + keys)), 9, text_start=2)


@given(
    counts=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 40)), max_size=30),
    workers=st.integers(1, 6),
    least=st.integers(1, 20),
)
def test_units_cover_every_sample_exactly_once(counts: list[tuple[int, int, int]], workers: int, least: int):
    requests = [request(prompt, response, keys, 100 * i) for i, (prompt, response, keys) in enumerate(counts)]
    drawn: list[list[int | None]] = [[None] * len(one.keys) for one in requests]
    for unit in divide_requests(requests, workers, least):
        assert unit.samples > 0
        for part, (index, start) in zip(unit.requests, unit.places, strict=True):
            assert np.array_equal(part.prefix, requests[index].prefix)
            assert drawn[index][start : start + len(part.keys)] == [None] * len(part.keys), "no sample twice"
            drawn[index][start : start + len(part.keys)] = part.keys
    assert drawn == [list(one.keys) for one in requests]


def test_one_worker_takes_a_call_whole():
    requests = [request(1, 3, 8), request(2, 0, 8), request(1, 0, 8)]
    (unit,) = divide_requests(requests, 1, 4)
    assert [index for index, _ in unit.places] == [2, 0, 1], "prompt by prompt, short prefixes first"


def test_units_get_smaller_so_that_workers_end_together():
    sizes = [unit.samples for unit in divide_requests([request(i, 0, 8) for i in range(64)], 2, 16)]
    # 512 samples for 2 workers: a quarter of what remains each time, in whole prompts of 8.
    assert sizes[:3] == [128, 96, 72]
    assert sizes[-1] <= 16
    assert sum(sizes) == 512


def test_many_samples_of_one_prompt_are_shared_out_too():
    sizes = [unit.samples for unit in divide_requests([request(1, 0, 256)], 2, 16)]
    assert sizes[0] == 64
    assert len(sizes) >= 4
