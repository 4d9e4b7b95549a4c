"""Test that samples share a row while their tokens are equal, and draw what each draws alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stages.sampling.embedded.engine import TransformersSampler
from stages.sampling.embedded.forward import Forward, Spans
from stages.sampling.embedded.kv_cache import KeyValueRows
from stages.sampling.protocol import Request, Sample, SamplingParams
from tests.sampling.sampling_models import KINDS, Kind, make, random_prefixes, request, sampler


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Counted:
    """A forward pass that records the number of rows of each decoding step."""

    def __init__(self, forward: Forward) -> None:
        self.forward, self.plan = forward, forward.plan
        self.rows: list[int] = []

    def __call__(
        self, ids: torch.Tensor, bias: torch.Tensor, cache: KeyValueRows, spans: Spans | None = None, /
    ) -> torch.Tensor:
        if ids.shape[1] == 1:
            self.rows.append(len(ids))
        return self.forward(ids, bias, cache, spans)


def rows_computed(engine: TransformersSampler) -> list[int]:
    """Return a list to which the engine appends the number of rows of each decoding step."""
    counted = Counted(engine.forward)
    engine.forward = counted
    return counted.rows


def bits(sample: Sample) -> tuple[bytes, bytes, str]:
    return sample.token_ids.tobytes(), sample.logprobs.tobytes(), sample.finish_reason


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_hundred_equal_samples_take_one_block_of_rows(temperature: float) -> None:
    engine = sampler(make("qwen2"))
    rows = rows_computed(engine)
    (prefix,) = random_prefixes([20])
    shared = Request(prefix, (7,) * 100, 30)
    (samples,), usage = engine.sample([shared], SamplingParams(temperature=temperature))
    assert set(rows) == {32}
    assert len({bits(sample) for sample in samples}) == 1
    assert usage.sampled == 100 * len(samples[0].token_ids)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_that_diverge_late_equal_those_that_each_key_draws_alone(kind: Kind) -> None:
    """At a low temperature the samples of a prefix diverge at various tokens; two of the prefixes are equal."""
    engine = sampler(make(kind))
    prefixes = random_prefixes([6, 31])
    requests = [request(prefix, 20, 40 - 15 * (i % 2), i) for i, prefix in enumerate([*prefixes, prefixes[0]])]
    params = SamplingParams(temperature=0.3)
    together = engine.sample(requests, params)[0]
    firsts = {sample.token_ids[:4].tobytes() for sample in together[0]}
    assert 1 < len(firsts) < 20
    for one, samples in zip(requests, together, strict=True):
        for key, sample in list(zip(one.keys, samples, strict=True))[::5]:
            (alone,) = engine.sample([Request(one.prefix, (key,), one.max_new_tokens)], params)[0]
            assert bits(sample) == bits(alone[0])


def test_samples_that_share_a_row_end_at_their_own_limits() -> None:
    engine = sampler(make("qwen2"))
    (prefix,) = random_prefixes([12])
    limits = (3, 8, 8, 1)
    results, _ = engine.sample([Request(prefix, (5,), limit) for limit in limits], SamplingParams())
    longest = results[1][0].token_ids
    for (sample,), limit in zip(results, limits, strict=True):
        np.testing.assert_array_equal(sample.token_ids, longest[:limit])
