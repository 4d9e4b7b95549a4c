"""Test that the bits of a sample depend only on its prefix and key.

The other requests, their order, the rows of a batch, the windows of the prefill and the division of work among threads
change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from stages.sampling.embedded import engine as engine_module
from stages.sampling.embedded.engine import TransformersSampler
from stages.sampling.protocol import Request, Sample, SamplingParams
from tests.sampling.sampling_models import KINDS, Kind, make, random_prefixes, request, sampler

Bits = list[list[tuple[bytes, bytes, str]]]


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def nested_requests() -> list[Request]:
    """Return requests from two trajectories per prompt; attention changes its blocks at lengths of 256 and 512."""
    prefixes = []
    for prompt, tails in zip(random_prefixes([5, 210, 470]), ((40, 150), (90, 330), (20, 75)), strict=True):
        for seed, tail in enumerate(random_prefixes(tails, seed=len(prompt))):
            whole = np.concatenate([prompt, tail])
            prefixes += [whole[:length] for length in (len(prompt), len(prompt) + 7 + seed, len(whole))]
    return [request(prefix, 2, 12 + 5 * i % 60, i) for i, prefix in enumerate(prefixes)]


def bits(engine: TransformersSampler, requests: Sequence[Request], params: SamplingParams) -> Bits:
    def sample_bits(sample: Sample) -> tuple[bytes, bytes, str]:
        return sample.token_ids.tobytes(), sample.logprobs.tobytes(), sample.finish_reason

    results, usage = engine.sample(requests, params)
    assert usage.prefilled == usage.distinct_prefix_tokens
    return [[sample_bits(sample) for sample in samples] for samples in results]


@pytest.mark.parametrize("kind", KINDS)
def test_other_requests_order_and_sizes_change_no_bit(
    kind: Kind, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = sampler(make(kind))
    requests, params = nested_requests(), SamplingParams(temperature=0.9, top_p=0.95)
    together = bits(engine, requests, params)

    for i in (0, 4, 8, 11, 17):
        assert bits(engine, [requests[i]], params) == [together[i]]
    some = [16, 3, 9, 2]
    assert bits(engine, [requests[i] for i in some], params) == [together[i] for i in some]
    for rows in (3, 40):
        engine.max_batch_rows = rows
        assert bits(engine, requests, params) == together
    monkeypatch.setattr(engine_module, "_sizes", lambda *_: (36, 36, 2, 1))  # a store of two paths: many windows
    assert bits(engine, requests, params) == together


@pytest.mark.parametrize("threads", [2], indirect=True)
def test_threads_that_share_a_wide_product_change_no_bit(threads: int) -> None:
    """If two threads split the rows at this width, they sum in another order from about 200 rows on."""
    engine = sampler(make("qwen2", width=1024))
    few, many = (
        request(prefix, samples, 3) for prefix, samples in zip(random_prefixes([33, 40]), (2, 222), strict=True)
    )
    together = bits(engine, [few, many], SamplingParams())
    assert bits(engine, [few], SamplingParams()) == together[:1]


def test_a_sample_is_the_start_of_the_longer_one_with_the_same_key() -> None:
    torch.set_num_threads(1)
    engine = sampler(make("qwen2"))
    (prefix,) = random_prefixes([20])
    short, long = (engine.sample([request(prefix, 4, most)], SamplingParams())[0][0] for most in (10, 200))
    for a, b in zip(short, long, strict=True):
        assert a.token_ids.tolist() == b.token_ids[:10].tolist()
        assert a.logprobs.tobytes() == b.logprobs[:10].tobytes()


def test_equal_keys_draw_equal_samples_and_other_keys_do_not() -> None:
    torch.set_num_threads(1)
    engine = sampler(make("qwen2"))
    (prefix,) = random_prefixes([20])
    requests = [Request(prefix, (1, 2, 1), 20), Request(prefix.copy(), (2,), 20)]
    (first, second, third), (fourth,) = bits(engine, requests, SamplingParams())
    assert first == third != second == fourth
