"""Test that a pool opens a model once, and again only when the model or the options change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stages.configs.execution import ExecutorOptions
from stages.core.progress import Silent
from stages.models.presets import make_byte_tokenizer
from stages.sampling.executors import use_pool
from stages.sampling.pool import SamplerPool
from tests.sampling.sampling_models import make


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Save a small model and its tokenizer."""
    make("qwen2").save_pretrained(tmp_path)
    make_byte_tokenizer().save_pretrained(tmp_path)
    return tmp_path


class Reloadable:
    """A sampler that loads other weights in place, like vLLM, and records its calls."""

    context_length, caveat, is_plain = 64, None, False

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.closed = False

    def sample(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("these tests do not sample")

    def reload(self, model_dir: Path) -> bool:
        self.calls.append(model_dir.name)
        return True

    def free_memory(self) -> None:
        self.calls.append("free_memory")

    def close(self) -> None:
        self.calls.append("close")
        self.closed = True


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Reloadable]:
    """Let the embedded engine open `Reloadable` samplers; return those that a pool has opened."""
    samplers: list[Reloadable] = []

    def open_reloadable(model_dir: Path, **options: Any) -> Reloadable:
        samplers.append(Reloadable())
        return samplers[-1]

    monkeypatch.setattr("stages.sampling.transformers.open_sampler", open_reloadable)
    return samplers


def directories(tmp_path: Path) -> tuple[Path, Path]:
    """Create two empty model directories."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    return tmp_path / "first", tmp_path / "second"


def test_a_model_directory_is_opened_once_and_again_when_it_changes(model: Path) -> None:
    with SamplerPool() as pool:
        first = pool.open("transformers", model, device="cpu")
        assert pool.open("transformers", model, device="cpu") is first
        make("qwen2", seed=1).save_pretrained(model)
        assert pool.open("transformers", model, device="cpu") is not first
        assert first.context_length == 2048


def test_other_options_open_another_sampler(model: Path) -> None:
    with SamplerPool() as pool:
        first = pool.open("transformers", model, device="cpu")
        assert pool.open("transformers", model, device="cpu", max_model_len=100).context_length == 100
        assert pool.open("transformers", model, device="cpu") is not first


def test_another_model_is_loaded_in_place_if_the_sampler_supports_it(opened: list[Reloadable], tmp_path: Path) -> None:
    first, second = directories(tmp_path)
    with SamplerPool() as pool:
        sampler = pool.open("transformers", first)
        assert pool.open("transformers", second) is sampler
        assert opened[0].calls == ["second"]
    assert opened[0].calls == ["second", "close"]


def test_a_closed_sampler_is_opened_again(opened: list[Reloadable], tmp_path: Path) -> None:
    first, _ = directories(tmp_path)
    with SamplerPool() as pool:
        pool.open("transformers", first)
        opened[0].closed = True
        assert pool.open("transformers", first) is opened[1]


def test_memory_is_freed_by_closing_unless_the_sampler_is_kept(opened: list[Reloadable], tmp_path: Path) -> None:
    first, _ = directories(tmp_path)
    for keep, calls in ((False, ["close"]), (True, ["free_memory", "first", "close"])):
        with SamplerPool(keep_while_training=keep) as pool:
            pool.open("transformers", first)
            sampler = opened[-1]
            pool.free_memory()
            assert (pool.open("transformers", first) is sampler) == keep
        assert sampler.calls == calls


def test_a_pool_of_the_caller_stays_open_and_a_pool_of_the_callee_is_closed(
    opened: list[Reloadable], tmp_path: Path
) -> None:
    first, _ = directories(tmp_path)
    with SamplerPool() as outer:
        with use_pool(outer, ExecutorOptions(), tmp_path, Silent()) as pool:
            assert pool is outer
            pool.open("transformers", first)
        assert not opened[0].closed
    with use_pool(None, ExecutorOptions(), tmp_path, Silent()) as pool:
        pool.open("transformers", first)
    assert [sampler.closed for sampler in opened] == [True, True]
