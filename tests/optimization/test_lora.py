"""Train adapters: their parameters, optimizer state and resumption, and the base scored with the adapter off."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages.models import adapters, loading
from stages.models.checkpoints import OPTIMIZER_FILE
from stages.optimization.batches import collate
from stages.optimization.critic import open_critic
from stages.optimization.lora import BaseScorer
from stages.optimization.optimizer import AdamWConfig
from stages.optimization.torch import open_engine
from tests.adapter_training import SMALL, logits, make_examples, save, save_base, train, train_adapter

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    """An adapter in a directory next to its base."""
    return train_adapter(base, base.with_name("adapter"))


def test_a_new_adapter_leaves_outputs_unchanged_and_only_its_parameters_are_trained(base: Path):
    engine = open_engine(base, device="cpu", adapter=SMALL)
    whole = loading.load_model(base, CPU, torch.float32)
    assert torch.equal(logits(engine.model), logits(whole))
    before = {name: value.clone() for name, value in engine.model.named_parameters()}
    train(engine, 2)
    moved = {name for name, value in engine.model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if "lora_" in name}
    assert {name.split(".")[4] for name in moved} == {"q_proj", "v_proj"}


def test_the_optimizer_state_covers_only_the_adapter(base: Path, adapter: Path):
    state = load_file(adapter / OPTIMIZER_FILE)
    assert state
    assert all("lora_" in name for name in state)
    # 2 layers, 2 matrices each of 64 × 64: A has 4 × 64 numbers, B 64 × 4; two moments of each
    assert sum(value.numel() for name, value in state.items() if name.startswith("exp_avg")) == 2 * 2 * 2 * 2 * 256


def test_a_saved_adapter_continues_bit_for_bit(base: Path, adapter: Path, tmp_path: Path):
    straight = train(open_engine(base, device="cpu", adapter=SMALL), 4)
    resumed = train(open_engine(adapter, device="cpu", continue_optimizer=True), 2)
    one, other = (save(engine, tmp_path / name) for engine, name in ((straight, "one"), (resumed, "other")))
    for name in (adapters.WEIGHTS[0], adapters.CONFIG_FILE, OPTIMIZER_FILE):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_the_base_is_scored_with_the_adapter_switched_off(base: Path, adapter: Path):
    engine, batch = open_engine(adapter, device="cpu"), collate(make_examples())
    off = BaseScorer(engine, engine.model).score(batch, 0.7).logprobs
    assert torch.equal(off, open_engine(base, device="cpu").score(batch, 0.7).logprobs.detach())
    on = engine.score(batch, 0.7).logprobs
    assert on.requires_grad
    assert not torch.allclose(on, off, atol=1e-3)


def test_with_bfloat16_the_base_is_bfloat16_and_the_adapter_float32(adapter: Path, tmp_path: Path):
    engine = open_engine(adapter, device="cpu", dtype="bfloat16")
    kinds = {parameter.requires_grad: parameter.dtype for parameter in engine.model.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    same = save(engine, tmp_path / "same")
    assert (same / adapters.WEIGHTS[0]).read_bytes() == (adapter / adapters.WEIGHTS[0]).read_bytes()
    full = open_engine(adapter, device="cpu").score(collate(make_examples()), 1.0).logprobs
    torch.testing.assert_close(engine.score(collate(make_examples()), 1.0).logprobs, full, rtol=0, atol=0.1)
    train(engine, 1)


def test_gradient_checkpointing_gives_the_same_gradient(base: Path, adapter: Path):
    engines = [open_engine(adapter, device="cpu", gradient_checkpointing=again) for again in (False, True)]
    grads = []
    for engine in engines:
        engine.backward(engine.score(collate(make_examples()), 1.0).logprobs.sum())
        grads.append([parameter.grad for parameter in engine.model.parameters() if parameter.requires_grad])
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def test_a_critic_can_start_from_an_adapter(adapter: Path):
    critic = open_critic(adapter, AdamWConfig(), device="cpu")
    assert all(parameter.requires_grad for parameter in critic.model.parameters())
