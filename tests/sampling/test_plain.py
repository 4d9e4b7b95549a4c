"""Test the plain sampling engine on families that the embedded engine cannot sample."""

from __future__ import annotations

import copy
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.core.errors import UserError
from stages.models.presets import make_byte_tokenizer
from stages.sampling.plain import PlainSampler
from stages.sampling.protocol import SamplingParams, engine_counts
from stages.sampling.transformers import open_sampler
from tests.families import make_model
from tests.sampling.sampling_models import END, make, plain_logprobs, random_prefixes, request, sampler


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def plain(model: Any, rows: int | None = None) -> PlainSampler:
    return PlainSampler(copy.deepcopy(model), make_byte_tokenizer(), "a reason", max_batch_rows=rows)


def test_it_draws_the_tokens_that_the_embedded_engine_draws() -> None:
    model = make("qwen2", context=64)
    prefixes = random_prefixes([5, 30, 30, 9])
    requests = [request(prefix, 3, 40, name) for name, prefix in enumerate(prefixes)]
    tempered = SamplingParams(temperature=0.7, top_p=0.9, entropies=True)
    for params in (tempered, SamplingParams(temperature=0), SamplingParams(top_k=5)):
        (found, usage), (expected, _) = plain(model).sample(requests, params), sampler(model).sample(requests, params)
        for one, other in zip(chain(*found), chain(*expected), strict=True):
            assert one.token_ids.tolist() == other.token_ids.tolist()
            assert one.finish_reason == other.finish_reason
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)
            assert (one.entropies is None) == (other.entropies is None) == (not params.entropies)
            if one.entropies is not None:
                np.testing.assert_allclose(one.entropies, other.entropies, atol=1e-4)  # pyright: ignore
        assert usage.sampled == sum(len(sample.token_ids) for sample in chain(*found))
    assert (usage.prefilled, usage.distinct_prefix_tokens) == (3 * 74, 74)


def test_stop_strings_end_a_sample_as_in_the_embedded_engine() -> None:
    model = make("qwen2")
    (prefix,) = random_prefixes([9])
    params = SamplingParams(stop=("a", "e", "\n"))
    (found,), (expected,) = (one.sample([request(prefix, 12, 60)], params)[0] for one in (plain(model), sampler(model)))
    assert [one.token_ids.tolist() for one in found] == [one.token_ids.tolist() for one in expected]
    assert {"stop"} <= {one.finish_reason for one in found}


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss", "deepseek_v3", "qwen3_next", "gpt_neo", "bloom"])
def test_samples_depend_neither_on_the_batch_nor_on_windows_beyond_rounding(family: str) -> None:
    """The prefixes are shorter and longer than the window of 16 tokens."""
    model = make_model(family)
    requests = [request(prefix, 2, 20, name) for name, prefix in enumerate(random_prefixes([3, 40, 21]))]
    together, _ = plain(model).sample(requests, SamplingParams())
    alone = [plain(model, rows=1).sample([one], SamplingParams())[0][0] for one in requests]
    for one, samples, others in zip(requests, together, alone, strict=True):
        for sample, other in zip(samples, others, strict=True):
            assert sample.token_ids.tolist() == other.token_ids.tolist()
            np.testing.assert_allclose(sample.logprobs, plain_logprobs(model, one.prefix, sample), atol=1e-4)


def test_generation_settings_of_the_model_end_samples_and_change_no_logits() -> None:
    model = make("qwen2")
    model.generation_config.eos_token_id = list(range(0, 250, 5))
    model.generation_config.repetition_penalty, model.generation_config.temperature = 3.0, 0.1
    (prefix,) = random_prefixes([6])
    for sample in plain(model).sample([request(prefix, 8, 30)], SamplingParams())[0][0]:
        assert sample.token_ids[-1] % 5 == 0 or sample.token_ids[-1] == END or len(sample.token_ids) == 30
        np.testing.assert_allclose(sample.logprobs, plain_logprobs(model, prefix, sample), atol=1e-4)


def test_a_model_is_opened_by_the_engine_that_can_sample_it(tmp_path: Path) -> None:
    for family, is_plain in (("llama", False), ("gemma2", True)):
        make_model(family).save_pretrained(tmp_path / family)
        make_byte_tokenizer().save_pretrained(tmp_path / family)
        opened = open_sampler(tmp_path / family, device="cpu")
        assert opened.is_plain == is_plain
        assert engine_counts(opened, 7) == ({"batch_dependent": 7, "plain_engine": 7} if is_plain else {})
    assert "gemma2 model has layers of other kinds than full attention (sliding_attention)" in str(opened.caveat)


def test_a_family_whose_cache_is_wrong_is_sampled_without_it() -> None:
    model = make("qwen2")
    own = model.model.forward

    def forgetful(*args: Any, **more: Any) -> Any:
        cached = more.get("past_key_values")
        out = own(*args, **more)
        if cached is not None and cached.get_seq_length() > 60:
            out.last_hidden_state = out.last_hidden_state * 0.5
        return out

    model.model.forward = forgetful
    engine = PlainSampler(model, make_byte_tokenizer(), "a reason")
    assert engine.uses_cache
    with pytest.raises(UserError, match=r"qwen2 model gives log-probabilities that differ by .* nats"):
        engine.sample([request(random_prefixes([50])[0], 1, 40)], SamplingParams())
    assert not PlainSampler(_always_wrong_cache(), make_byte_tokenizer(), "a reason").uses_cache


def _always_wrong_cache() -> Any:
    model = make("qwen2")
    own = model.model.forward

    def forgetful(*args: Any, **more: Any) -> Any:
        return own(*args, **more | ({"past_key_values": None} if more.get("past_key_values") is not None else {}))

    model.model.forward = forgetful
    return model
