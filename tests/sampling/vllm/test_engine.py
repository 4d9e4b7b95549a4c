"""Test that the vLLM engine draws the same samples by the same keys as the embedded engine, and reports the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.core.errors import UserError
from stages.sampling.pool import SamplerPool
from stages.sampling.protocol import Request, Sample, Sampler, SamplingParams
from stages.sampling.transformers import open_sampler
from stages.sampling.vllm.engine import VllmSampler
from tests.sampling.sampling_models import END, plain_logprobs, random_prefixes, request
from tests.sampling.vllm.conftest import Vllm

pytestmark = pytest.mark.xdist_group("vllm")


@pytest.fixture
def engines(vllm: Vllm) -> Iterator[tuple[object, Sampler]]:
    """Open vLLM and the embedded engine on the random model."""
    torch.set_num_threads(1)
    with SamplerPool() as pool:
        yield pool.open("vllm", vllm.random), open_sampler(vllm.random, dtype="float32")


def nested_requests() -> list[Request]:
    """Return requests whose prefixes are partly nested or equal."""
    prefixes = random_prefixes([40, 55, 90, 130])
    prefixes += [prefixes[3][:64], prefixes[3][:100], prefixes[2][:33], prefixes[1]]
    return [request(prefix, 4, 40, name) for name, prefix in enumerate(prefixes)]


def fraction_equal(from_vllm: Sequence[Sequence[Sample]], from_embedded: Sequence[Sequence[Sample]]) -> float:
    """Return the fraction of samples with equal tokens and finish reason."""
    pairs = [pair for samples in zip(from_vllm, from_embedded, strict=True) for pair in zip(*samples, strict=True)]
    return float(
        np.mean([a.token_ids.tolist() == b.token_ids.tolist() and a.finish_reason == b.finish_reason for a, b in pairs])
    )


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.7),
        SamplingParams(top_p=0.8, top_k=20),
        SamplingParams(stop=("a", "\n")),
    ],
    ids=str,
)
def test_the_same_keys_draw_the_same_samples(engines, params: SamplingParams) -> None:
    """A few samples may differ: rounding, which depends on the machine, can decide between two tokens."""
    from_vllm, _ = engines[0].sample(nested_requests(), params)
    from_embedded, _ = engines[1].sample(nested_requests(), params)
    assert fraction_equal(from_vllm, from_embedded) > 0.9


def test_greedy_outputs_are_equal(engines) -> None:
    from_vllm, _ = engines[0].sample(nested_requests(), SamplingParams(temperature=0))
    from_embedded, _ = engines[1].sample(nested_requests(), SamplingParams(temperature=0))
    assert fraction_equal(from_vllm, from_embedded) == 1


@pytest.mark.parametrize(
    "params", [SamplingParams(temperature=0.7), SamplingParams(temperature=1.3, top_p=0.5, top_k=9)]
)
def test_logprobs_refer_to_the_whole_vocabulary_at_this_temperature(engines, params: SamplingParams) -> None:
    model = engines[1].model
    model.set_attn_implementation("sdpa")
    results, usage = engines[0].sample(nested_requests(), params)
    for one, samples in zip(nested_requests(), results, strict=True):
        for sample in samples:
            expected = plain_logprobs(model, one.prefix, sample, temperature=params.temperature)
            np.testing.assert_allclose(sample.logprobs, expected, atol=1e-3)
            assert (sample.token_ids.dtype, sample.logprobs.dtype) == (np.int32, np.float32)
    assert usage.sampled == sum(len(sample.token_ids) for samples in results for sample in samples)


def test_a_sample_ends_with_the_end_of_text_or_at_its_limit(engines) -> None:
    results, _ = engines[0].sample(
        [request(p, 20, 30, i) for i, p in enumerate(random_prefixes([20] * 6))], SamplingParams(temperature=1.5)
    )
    ends = {sample.finish_reason for samples in results for sample in samples}
    assert ends == {"stop", "length"}
    for sample in (sample for samples in results for sample in samples):
        assert (sample.token_ids[-1] == END) == (sample.finish_reason == "stop")
        assert sample.finish_reason == "stop" or len(sample.token_ids) == 30


def test_a_sample_ends_at_the_context_length(engines) -> None:
    (long,) = random_prefixes([engines[0].context_length - 3])
    ((sample,),), _ = engines[0].sample([request(long, 1, 50)], SamplingParams(temperature=0))
    assert (len(sample.token_ids), sample.finish_reason) == (3, "length")
    with pytest.raises(UserError, match="leaves no room"):
        engines[0].sample([request(np.zeros(engines[0].context_length, np.int32), 1, 5)], SamplingParams())


def test_a_stop_string_may_begin_in_the_response_so_far(engines) -> None:
    """The prefix ends with `#`: a sample that draws the chosen character completes the stop string `#<character>`."""
    prefix = np.frombuffer(b"1+2=3.#", np.uint8).astype(np.int32)
    requests = [Request(prefix, tuple(range(24)), 12, text_start=4)]
    (free,), _ = engines[0].sample(requests, SamplingParams(temperature=1.5))
    first = next(int(s.token_ids[0]) for s in free if s.token_ids[0] < 128)
    params = SamplingParams(temperature=1.5, stop=("#" + chr(first),))
    (from_vllm,), _ = engines[0].sample(requests, params)
    from_embedded, _ = engines[1].sample(requests, params)
    ended = [sample for sample in from_vllm if sample.token_ids[0] == first]
    assert ended
    assert all(len(s.token_ids) == 1 == len(s.logprobs) and s.finish_reason == "stop" for s in ended)
    assert fraction_equal([from_vllm], from_embedded) > 0.9


def with_empty_cache(vllm: Vllm) -> VllmSampler:
    """Return the engine on the random model with an empty cache."""
    assert isinstance(vllm.sampler, VllmSampler)
    assert vllm.sampler.reload(vllm.random)
    return vllm.sampler


def test_each_token_of_nested_prefixes_is_computed_once(vllm: Vllm) -> None:
    """Prefixes end at and within blocks of vLLM's cache (32 tokens); one or nine samples start from each."""
    longest, other = random_prefixes([256, 100], seed=5)
    states = [longest[:length] for length in (5, 32, 33, 40, 41, 42, 96, 97, 200, 256)]
    states += [other, np.concatenate([longest[:150], other])]
    requests = [request(state, 1 if i % 3 == 0 else 9, 4, i) for i, state in enumerate(states)]
    _, usage = with_empty_cache(vllm).sample(requests, SamplingParams())
    assert usage.prefilled == usage.distinct_prefix_tokens == 256 + 100 + 100


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_prefix_trees_of_any_shape_draw_the_samples_of_the_embedded_engine(engines, data: st.DataObject) -> None:
    """Each prefix continues an earlier one from any position, so that requests also start from copied blocks."""
    prefixes = random_prefixes([data.draw(st.integers(1, 80))], seed=data.draw(st.integers(0, 99)))
    for seed in range(data.draw(st.integers(0, 7))):
        start = data.draw(st.sampled_from(prefixes))
        (more,) = random_prefixes([data.draw(st.integers(1, 40))], seed=seed)
        prefixes.append(np.concatenate([start[: data.draw(st.integers(0, len(start)))], more]))
    requests = [request(prefix, data.draw(st.integers(1, 4)), 8, i) for i, prefix in enumerate(prefixes)]
    greedy = SamplingParams(temperature=0)
    from_vllm, usage = engines[0].sample(requests, greedy)
    assert fraction_equal(from_vllm, engines[1].sample(requests, greedy)[0]) == 1
    assert usage.prefilled <= usage.distinct_prefix_tokens + len(requests)


def test_requests_without_samples_compute_nothing(engines) -> None:
    assert engines[0].sample([], SamplingParams())[0] == []
    results, usage = engines[0].sample([Request(np.array([1, 2], np.int32), (), 5)], SamplingParams())
    assert (results, usage.sampled, usage.prefilled) == ([[]], 0, 0)


def test_progress_is_reported_while_samples_finish(engines) -> None:
    reports: list[tuple[int, int]] = []
    results, usage = engines[0].sample(nested_requests(), SamplingParams(), lambda *counts: reports.append(counts))
    assert sum(finished for finished, _ in reports) == sum(map(len, results))
    assert sum(tokens for _, tokens in reports) == usage.sampled
    assert len(reports) > 1


def test_another_models_weights_are_loaded_in_place(vllm: Vllm) -> None:
    """The head is tied to the embedding, so both must be replaced; the cached blocks of the old model are dropped."""
    requests = nested_requests()
    with SamplerPool(keep_while_training=True) as pool:
        sampler = pool.open("vllm", vllm.random)
        sampler.sample(requests, SamplingParams())
        pool.free_memory()
        again = pool.open("vllm", vllm.policy)
        assert again is sampler
        from_vllm, _ = again.sample(requests, SamplingParams())
    from_embedded, _ = open_sampler(vllm.policy, dtype="float32").sample(requests, SamplingParams())
    assert fraction_equal(from_vllm, from_embedded) > 0.9


def test_a_model_of_another_shape_is_not_loaded_in_place(vllm: Vllm, tmp_path: Path) -> None:
    from tests.sampling.sampling_models import make

    make("qwen2", width=128).save_pretrained(tmp_path)
    assert not vllm.sampler.reload(tmp_path)
