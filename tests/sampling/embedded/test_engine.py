"""Test the samples of the embedded engine: tokens, log-probabilities, ends, limits and counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from stages.core.errors import UserError
from stages.models.presets import make_byte_tokenizer
from stages.sampling.embedded.engine import CannotSample, TransformersSampler
from stages.sampling.protocol import Request, SamplingParams
from tests.families import make_model
from tests.sampling.sampling_models import (
    END,
    KINDS,
    Kind,
    make,
    plain_logprobs,
    random_prefixes,
    request,
    sampler,
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_match_a_plain_forward_pass(kind: Kind) -> None:
    model = make(kind)
    prefixes = random_prefixes([1, 5, 33, 90, 300])
    prefixes += [prefixes[3][:40], prefixes[3][:64], np.concatenate([prefixes[1], prefixes[2]])]
    requests = [request(prefix, 3, 20, name) for name, prefix in enumerate(prefixes)]
    results, usage = sampler(model).sample(requests, SamplingParams(temperature=0.7))
    assert [len(samples) for samples in results] == [3] * len(requests)
    for one, samples in zip(requests, results, strict=True):
        for sample in samples:
            expected = plain_logprobs(model, one.prefix, sample, temperature=0.7)
            np.testing.assert_allclose(sample.logprobs, expected, rtol=1e-5, atol=1e-5)
    assert usage.sampled == sum(len(sample.token_ids) for samples in results for sample in samples)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_samples_equal_those_of_generate(kind: Kind) -> None:
    model = make(kind)
    prefixes = random_prefixes([7, 40, 41, 100])
    results, _ = sampler(model).sample([request(p, 1, 30) for p in prefixes], SamplingParams(temperature=0))
    for prefix, (sample,) in zip(prefixes, results, strict=True):
        ids = torch.from_numpy(prefix).long()[None]
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=30)
        assert sample.token_ids.tolist() == expected[0, len(prefix) :].tolist()
        np.testing.assert_allclose(sample.logprobs, plain_logprobs(model, prefix, sample), atol=1e-5)


def test_draws_follow_the_exact_distribution_of_two_tokens() -> None:
    """Chi-square test over all pairs of a vocabulary of 6: the 0.1 % point at 35 degrees of freedom is 66.6."""
    model = make("qwen2", vocabulary=6, seed=3)
    (prefix,) = random_prefixes([4], vocabulary=6)
    draws, temperature = 8000, 1.5
    samples = sampler(model).sample([request(prefix, draws, 2)], SamplingParams(temperature=temperature))[0][0]
    counts = np.zeros((6, 6))
    for sample in samples:
        counts[tuple(sample.token_ids)] += 1
    with torch.inference_mode():
        pairs = torch.tensor([[*prefix, first] for first in range(6)])
        probabilities = torch.softmax(model(pairs).logits.double() / temperature, -1).numpy()
    expected = draws * probabilities[0, len(prefix) - 1][:, None] * probabilities[:, -1]
    assert expected.min() > 5
    assert ((counts - expected) ** 2 / expected).sum() < 66.6


def test_top_k_and_top_p_narrow_the_choice_but_not_the_logprobs() -> None:
    model = make("qwen2", vocabulary=40)
    (prefix,) = random_prefixes([6], vocabulary=40)
    with torch.inference_mode():
        probabilities = torch.softmax(model(torch.from_numpy(prefix).long()[None]).logits[0, -1], -1).numpy()
    order = np.argsort(-probabilities)
    nucleus = int(np.searchsorted(np.cumsum(probabilities[order]), 0.8)) + 1
    engine = sampler(model)
    for params, kept in (
        (SamplingParams(top_k=3), order[:3]),
        (SamplingParams(top_p=0.8), order[:nucleus]),
        (SamplingParams(top_p=1e-9), order[:1]),
        (SamplingParams(top_k=1000), order),
    ):
        samples = engine.sample([request(prefix, 3000, 1)], params)[0][0]
        tokens = np.array([sample.token_ids[0] for sample in samples])
        assert set(tokens) <= set(kept.tolist())
        frequencies = np.bincount(tokens, minlength=40)[kept] / len(tokens)
        np.testing.assert_allclose(frequencies, probabilities[kept] / probabilities[kept].sum(), atol=0.05)
        recorded = np.array([sample.logprobs[0] for sample in samples])
        np.testing.assert_allclose(recorded, np.log(probabilities[tokens]), atol=1e-5)


def test_any_end_token_ends_a_sample_and_is_kept() -> None:
    model = make("qwen2")
    ends = list(range(0, 250, 10))
    model.generation_config.eos_token_id = ends
    samples = sampler(model).sample(
        [request(p, 40, 25, i) for i, p in enumerate(random_prefixes([3, 8]))], SamplingParams()
    )
    seen = set()
    for sample in (sample for samples in samples[0] for sample in samples):
        inner, last = sample.token_ids[:-1], int(sample.token_ids[-1])
        assert not np.isin(inner, [*ends, END]).any()
        ended = last in [*ends, END]
        assert sample.finish_reason == ("stop" if ended else "length")
        assert ended or len(sample.token_ids) == 25
        seen.add(sample.finish_reason)
    assert seen == {"stop", "length"}


def test_a_sample_ends_with_the_token_that_completes_a_stop_string() -> None:
    engine = sampler(make("qwen2"))
    (prefix,) = random_prefixes([9])
    plain = engine.sample([request(prefix, 12, 60)], SamplingParams())[0][0]
    bytes_of = [bytes(token for token in sample.token_ids.tolist() if token < 256) for sample in plain]
    pairs = [text[i : i + 2] for text in bytes_of for i in range(5, len(text) - 1)]
    stop = next(pair.decode() for pair in pairs if all(32 < byte < 127 for byte in pair))
    stopped = engine.sample([request(prefix, 12, 60)], SamplingParams(stop=("never said", stop)))[0][0]
    cut = 0
    for free, ended, text in zip(plain, stopped, bytes_of, strict=True):
        at = text.find(stop.encode())
        if at < 0:
            assert ended.token_ids.tolist() == free.token_ids.tolist()
        else:
            cut += 1
            assert ended.token_ids.tolist() == free.token_ids[: at + 2].tolist()
            assert ended.finish_reason == "stop"
    assert cut


def test_a_stop_string_may_begin_in_the_response_within_the_prefix() -> None:
    engine = sampler(make("qwen2"))
    state = np.frombuffer(b"prompt <", np.uint8).astype(np.int32)
    plain = engine.sample([request(state, 40, 5)], SamplingParams())[0][0]
    which = next(i for i, sample in enumerate(plain) if 32 < sample.token_ids[0] < 127)
    params = SamplingParams(stop=("<" + chr(plain[which].token_ids[0]),))
    within = engine.sample([request(state, 40, 5, text_start=7)], params)[0][0][which]
    without = engine.sample([request(state, 40, 5)], params)[0][0][which]
    assert (len(within.token_ids), within.finish_reason) == (1, "stop")
    assert without.token_ids.tolist() == plain[which].token_ids.tolist()


def test_distinct_prefix_tokens_are_prefilled_once() -> None:
    prompt, first, second = random_prefixes([30, 50, 45])
    one, two = np.concatenate([prompt, first]), np.concatenate([prompt, second])
    states = [one[:n] for n in (30, 44, 61, 80)] + [two[:n] for n in (30, 50, 75)] + [prompt[:10]]
    _, usage = sampler(make("qwen2")).sample([request(s, 9, 4, i) for i, s in enumerate(states)], SamplingParams())
    assert usage.prefilled == usage.distinct_prefix_tokens == 30 + 50 + 45


def test_the_context_limits_prefix_and_sample() -> None:
    engine = sampler(make("qwen2", context=48))
    short, full = random_prefixes([40, 48])
    samples = engine.sample([request(short, 30, 100)], SamplingParams())[0][0]
    assert max(len(sample.token_ids) for sample in samples) == 8
    with pytest.raises(UserError, match=r"prefix of 48 tokens .* context of 48 tokens"):
        engine.sample([request(short, 1, 1), request(full, 1, 1)], SamplingParams())
    with pytest.raises(UserError, match="empty"):
        engine.sample([request(short[:0], 1, 1)], SamplingParams())


def test_requests_without_samples_cost_nothing_and_keep_their_place() -> None:
    engine = sampler(make("qwen2"))
    one, two = random_prefixes([5, 6])
    results, usage = engine.sample([Request(one, (), 5), request(two, 2, 5), Request(one, (), 5)], SamplingParams())
    assert [len(samples) for samples in results] == [0, 2, 0]
    assert usage.prefilled == 6
    assert engine.sample([], SamplingParams())[0] == []


def test_progress_sums_to_the_totals() -> None:
    reports: list[tuple[int, int, int]] = []

    def note(done: int, tokens: int, prefilled: int = 0) -> None:
        reports.append((done, tokens, prefilled))

    requests = [request(p, 5, 30, i) for i, p in enumerate(random_prefixes([5, 20, 9]))]
    _, usage = sampler(make("qwen2"), rows=4).sample(requests, SamplingParams(), note)
    assert len(reports) > 2
    assert tuple(map(sum, zip(*reports, strict=True))) == (15, usage.sampled, usage.prefilled)


def test_weights_that_are_not_finite_are_an_error() -> None:
    model = make("qwen2")
    model.lm_head.weight.data[7] = float("nan")
    (prefix,) = random_prefixes([5])
    with pytest.raises(UserError, match="not finite"):
        sampler(model).sample([request(prefix, 2, 5)], SamplingParams())


def test_models_with_a_sliding_window_are_refused() -> None:
    windowed = make("qwen2", use_sliding_window=True, sliding_window=16, max_window_layers=0)
    with pytest.raises(UserError, match="full attention"):
        sampler(windowed)


def test_the_logits_are_those_of_the_model_scaled_or_capped() -> None:
    """Granite divides its logits by 8, NanoChat caps them; row 0 of the embedding is zero, so token 0 shows neither."""
    for family, more in (("granite", {"logits_scaling": 8.0}), ("nanochat", {})):
        model: Any = make_model(family, **more)
        with torch.no_grad():
            model.get_input_embeddings().weight[0] = 0
        requests = [request(prefix, 2, 20, name) for name, prefix in enumerate(random_prefixes([3, 40]))]
        results, _ = sampler(model).sample(requests, SamplingParams())
        for one, samples in zip(requests, results, strict=True):
            for sample in samples:
                np.testing.assert_allclose(sample.logprobs, plain_logprobs(model, one.prefix, sample), atol=1e-5)


def test_a_model_that_the_engine_refuses_is_left_as_it_was() -> None:
    model, ids = make_model("bloom"), torch.arange(30)[None]
    before = model(ids).logits
    with pytest.raises(CannotSample, match="cannot run"):
        TransformersSampler(model, make_byte_tokenizer())
    assert torch.equal(model(ids).logits, before)


def test_samples_of_a_mixture_of_experts_have_a_caveat() -> None:
    assert "mixture of experts" in str(sampler(make_model("qwen3_moe")).caveat)


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}, {"stop": ("",)}]
)
def test_parameters_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(UserError):
        SamplingParams(**wrong)
