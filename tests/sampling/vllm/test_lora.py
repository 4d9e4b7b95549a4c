"""Test that vLLM samples from an adapter directory: merged with its base, and loaded in place of other weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stages.models import loading
from stages.models.adapters import Lora
from stages.optimization.torch import open_engine
from stages.sampling.pool import SamplerPool
from stages.sampling.protocol import SamplingParams
from stages.sampling.transformers import open_sampler
from tests.adapter_training import train
from tests.sampling.sampling_models import random_prefixes, request
from tests.sampling.vllm.conftest import Vllm

pytestmark = pytest.mark.xdist_group("vllm")


def test_vllm_and_the_embedded_engine_sample_alike_from_an_adapter(vllm: Vllm, tmp_path: Path):
    torch.set_num_threads(1)
    adapted = open_engine(vllm.random, device="cpu", adapter=Lora(4, 8.0, ("down_proj", "q_proj", "v_proj")))
    train(adapted, 2).save(tmp_path / "adapter", loading.load_tokenizer(vllm.random), lambda directory: None)
    requests, params = (
        [request(prefix, 1, 30, name) for name, prefix in enumerate(random_prefixes([20, 33]))],
        SamplingParams(0),
    )
    with SamplerPool() as pool:
        base, _ = pool.open("vllm", vllm.random).sample(requests, params)
        from_vllm, _ = pool.open("vllm", tmp_path / "adapter").sample(requests, params)
    from_embedded, _ = open_sampler(tmp_path / "adapter", dtype="float32").sample(requests, params)
    for (merged,), (expected,), (unadapted,) in zip(from_vllm, from_embedded, base, strict=True):
        assert merged.token_ids.tolist() == expected.token_ids.tolist()
        np.testing.assert_allclose(merged.logprobs, expected.logprobs, rtol=0, atol=1e-3)
        assert merged.token_ids.tolist() != unadapted.token_ids.tolist()
