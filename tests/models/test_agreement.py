"""Test that an engine checks an architecture once per process, and a changed one again."""

from __future__ import annotations

import pytest

from stages.models.presets import make_byte_tokenizer
from stages.optimization.torch import TorchEngine
from stages.sampling.embedded.engine import TransformersSampler
from stages.sampling.self_check import SelfCheck
from tests.families import make_model


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets an entry for each comparison of a sampler with plain transformers."""
    found: list[int] = []
    compare = SelfCheck.compare

    def count(self: SelfCheck, requests: list, *arguments: object, **options: object) -> str | None:
        found.append(len(requests))
        return compare(self, requests, *arguments, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(SelfCheck, "compare", count)
    return found


def open_model(family: str, **more: object) -> TransformersSampler:
    return TransformersSampler(make_model(family, **more), make_byte_tokenizer())


def test_a_second_model_of_the_same_architecture_is_not_checked_when_it_opens(compared: list[int]) -> None:
    first, second = open_model("llama"), open_model("llama")
    assert len(compared) == 1
    assert first.plan == second.plan
    assert first.caveat == second.caveat
    open_model("llama", rms_norm_eps=1e-5)
    assert len(compared) == 2
    open_model("qwen3_moe")
    moe = open_model("qwen3_moe")
    assert len(compared) == 3
    assert not moe.plan.bitwise
    assert "mixture of experts" in str(moe.caveat)


def test_a_trainer_of_the_same_architecture_scores_nothing_when_it_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    TorchEngine(make_model("llama"))
    monkeypatch.setattr(TorchEngine, "score", lambda *_: pytest.fail("scored again"))
    TorchEngine(make_model("llama"))
