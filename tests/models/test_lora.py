"""Adapters: what is trained, what is written and read back, and that base and adapter are told apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from stages.core.errors import UserError
from stages.models import adapters, checkpoints, loading, lora, saving
from stages.models.adapters import Lora, LoraOptions
from stages.models.checkpoints import OPTIMIZER_FILE
from stages.models.presets import make_model
from stages.optimization.batches import Example, collate
from stages.optimization.lora import BaseScorer
from stages.optimization.objective import Objective
from stages.optimization.optimizer import AdamWConfig
from stages.optimization.step import update
from stages.optimization.torch import TorchEngine, open_engine

CPU = torch.device("cpu")
LAYERS = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
SMALL = Lora(r=4, alpha=8.0, targets=("q_proj", "v_proj"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "base"
    saving.save_directory(directory, *make_model("tiny", 0))
    return directory


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    """An adapter after two steps, beside its base."""
    return save(train(open_engine(base, device="cpu", adapter=SMALL), 2), base.with_name("adapter"))


def examples(count: int = 5) -> list[Example]:
    generator = np.random.default_rng(0)
    return [
        Example(
            tokens=generator.integers(32, 127, size=12 + index).astype(np.int32),
            kept=np.arange(5, 12 + index),
            advantages=generator.normal(size=7 + index),
        )
        for index in range(count)
    ]


def train(engine: TorchEngine, steps: int) -> TorchEngine:
    for _ in range(steps):
        update(engine, examples(), Objective(beta=0.0), 2, 1e-2)
    return engine


def save(engine: TorchEngine, directory: Path) -> Path:
    engine.save(directory, loading.load_tokenizer(_base(engine)), lambda unfinished: None)
    return directory


def _base(engine: TorchEngine) -> Path:
    return Path(str(engine.model.peft_config["default"].base_model_name_or_path))


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(40, 72)[None], use_cache=False).logits[0]


def test_a_new_adapter_changes_nothing_and_its_parameters_alone_are_trained(base: Path):
    engine = open_engine(base, device="cpu", adapter=SMALL)
    whole = loading.load_model(base, CPU, torch.float32)
    assert torch.equal(logits(engine.model), logits(whole))
    before = {name: value.clone() for name, value in engine.model.named_parameters()}
    train(engine, 2)
    moved = {name for name, value in engine.model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if "lora_" in name}
    assert {name.split(".")[4] for name in moved} == {"q_proj", "v_proj"}


def test_the_optimiser_s_state_is_of_the_adapter_alone(base: Path, adapter: Path):
    state = load_file(adapter / OPTIMIZER_FILE)
    assert state
    assert all("lora_" in name for name in state)
    # 2 layers, 2 matrices each of 64 × 64: A has 4 × 64 numbers, B 64 × 4; two moments of each
    assert sum(value.numel() for name, value in state.items() if name.startswith("exp_avg")) == 2 * 2 * 2 * 2 * 256


def test_an_adapter_written_and_read_again_goes_on_bit_for_bit(base: Path, adapter: Path, tmp_path: Path):
    straight = train(open_engine(base, device="cpu", adapter=SMALL), 4)
    resumed = train(open_engine(adapter, device="cpu", continue_optimizer=True), 2)
    one, other = (save(engine, tmp_path / name) for engine, name in ((straight, "one"), (resumed, "other")))
    for name in (adapters.WEIGHTS[0], adapters.CONFIG_FILE, OPTIMIZER_FILE):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_peft_loads_it_as_it_is(adapter: Path):
    from peft import AutoPeftModelForCausalLM

    theirs = AutoPeftModelForCausalLM.from_pretrained(str(adapter), dtype=torch.float32)
    assert torch.equal(logits(theirs.eval()), logits(open_engine(adapter, device="cpu").model))
    assert not (adapter / "README.md").exists()


def test_what_samplers_load_is_base_and_adapter_in_one(base: Path, adapter: Path):
    trained, merged = open_engine(adapter, device="cpu").model, loading.load_model(adapter, CPU, torch.float32)
    torch.testing.assert_close(logits(merged), logits(trained), rtol=0, atol=1e-4)
    assert not torch.allclose(logits(merged), logits(loading.load_model(base, CPU, torch.float32)), atol=1e-2)
    assert not adapters.is_adapted(merged)
    assert {type(module).__module__ for name, module in merged.named_modules() if name.endswith("_proj")} == {
        "torch.nn.modules.linear"
    }


def test_the_merged_directory_needs_neither_base_nor_peft(adapter: Path, tmp_path: Path):
    lora.write_merged(adapter, tmp_path / "merged")
    assert not adapters.is_adapter(tmp_path / "merged")
    whole = loading.load_model(checkpoints.resolve(str(tmp_path / "merged")), CPU, torch.float32)
    assert torch.equal(logits(whole), logits(loading.load_model(adapter, CPU, torch.float32)))


def test_an_engine_that_reads_no_adapters_gets_whole_weights(base: Path, adapter: Path, tmp_path: Path):
    assert lora.whole_directory(base, tmp_path) == base
    (tmp_path / "merged-of-another").mkdir()
    written = lora.whole_directory(adapter, tmp_path, torch.bfloat16)
    assert list(tmp_path.iterdir()) == [written]
    assert {value.dtype for value in load_file(written / "model.safetensors").values()} == {torch.bfloat16}
    assert lora.whole_directory(adapter, tmp_path) == written
    beside = tmp_path / "adapter"
    shutil.copytree(adapter, beside)
    lora.write_merged(beside, beside / adapters.MERGED)
    assert lora.whole_directory(beside, tmp_path) == beside / adapters.MERGED


def test_the_base_is_there_with_the_adapter_switched_off(base: Path, adapter: Path):
    engine, batch = open_engine(adapter, device="cpu"), collate(examples())
    off = BaseScorer(engine, engine.model).score(batch, 0.7).logprobs
    assert torch.equal(off, open_engine(base, device="cpu").score(batch, 0.7).logprobs.detach())
    on = engine.score(batch, 0.7).logprobs
    assert on.requires_grad
    assert not torch.allclose(on, off, atol=1e-3)


def test_in_bfloat16_the_base_is_kept_so_and_the_adapter_in_float32(adapter: Path, tmp_path: Path):
    engine = open_engine(adapter, device="cpu", dtype="bfloat16")
    kinds = {parameter.requires_grad: parameter.dtype for parameter in engine.model.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    same = save(engine, tmp_path / "same")
    assert (same / adapters.WEIGHTS[0]).read_bytes() == (adapter / adapters.WEIGHTS[0]).read_bytes()
    full = open_engine(adapter, device="cpu").score(collate(examples()), 1.0).logprobs
    torch.testing.assert_close(engine.score(collate(examples()), 1.0).logprobs, full, rtol=0, atol=0.1)
    train(engine, 1)


def test_recomputed_activations_give_the_same_gradient(base: Path, adapter: Path):
    engines = [open_engine(adapter, device="cpu", gradient_checkpointing=again) for again in (False, True)]
    grads = []
    for engine in engines:
        engine.backward(engine.score(collate(examples()), 1.0).logprobs.sum())
        grads.append([parameter.grad for parameter in engine.model.parameters() if parameter.requires_grad])
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def test_the_digest_covers_base_and_adapter_and_not_where_they_lie(base: Path, adapter: Path, tmp_path: Path):
    there = checkpoints.digest(adapter)
    assert there != checkpoints.digest(base)
    for directory in (base, adapter):
        shutil.copytree(directory, tmp_path / directory.name)
    copied = tmp_path / "adapter"
    told = json.loads((copied / adapters.CONFIG_FILE).read_text())
    told |= {"base_model_name_or_path": "/no/longer/there", "target_modules": ["v_proj", "q_proj"]}
    (copied / adapters.CONFIG_FILE).write_text(json.dumps(told))
    assert checkpoints.base_of(copied).resolve() == tmp_path / "base"
    assert checkpoints.digest(copied) == there
    told["base_model_name_or_path"] = str(base)
    (copied / adapters.CONFIG_FILE).write_text(json.dumps(told))
    saving.save_directory(tmp_path / "base", *make_model("tiny", 1))  # another model at the place beside it
    assert checkpoints.base_of(copied) == base
    assert checkpoints.digest(copied) == there
    (copied / adapters.CONFIG_FILE).write_text(json.dumps(told | {"lora_alpha": 16.0}))
    assert checkpoints.digest(copied) != there


def test_a_base_that_changed_or_is_gone_is_told(base: Path, adapter: Path, tmp_path: Path):
    for directory in (base, adapter):
        shutil.copytree(directory, tmp_path / directory.name)
    told = json.loads((tmp_path / "adapter" / adapters.CONFIG_FILE).read_text())
    told["base_model_name_or_path"] = "/no/longer/there"
    (tmp_path / "adapter" / adapters.CONFIG_FILE).write_text(json.dumps(told))
    saving.save_directory(tmp_path / "base", *make_model("tiny", 1))
    with pytest.raises(UserError, match="has changed since the adapter was trained"):
        checkpoints.resolve(str(tmp_path / "adapter"))
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(UserError, match="there is no model directory /no/longer/there"):
        checkpoints.resolve(str(tmp_path / "adapter"))


def test_a_torn_adapter_is_told(adapter: Path, base: Path, tmp_path: Path):
    torn = tmp_path / "torn"
    shutil.copytree(adapter, torn)
    weights = load_file(adapter / adapters.WEIGHTS[0])
    weights.pop(next(iter(weights)))
    from safetensors.torch import save_file

    save_file(weights, torn / adapters.WEIGHTS[0])
    with pytest.raises(UserError, match="missing adapter keys"):
        loading.load_model(torn, CPU, torch.float32)
    (torn / adapters.WEIGHTS[0]).write_bytes((adapter / adapters.WEIGHTS[0]).read_bytes()[:100])
    with pytest.raises(UserError, match="does not load onto"):
        loading.load_model(torn, CPU, torch.float32)


def test_the_plan_is_a_new_adapter_the_policy_s_own_or_none(base: Path, adapter: Path):
    assert lora.plan(base, LoraOptions()) is None
    assert lora.plan(base, LoraOptions(r=4)) == Lora(4, 8.0, LAYERS)
    assert lora.plan(base, LoraOptions(4, 1.0, ("v_proj", "q_proj"))) == Lora(4, 1.0, ("q_proj", "v_proj"))
    assert lora.plan(adapter, LoraOptions()) == lora.plan(adapter, LoraOptions(4, 8.0, ("v_proj", "q_proj"))) == SMALL


@pytest.mark.parametrize(
    ("on", "asked", "told"),
    [
        ("base", LoraOptions(alpha=3.0), "pass --lora-r"),
        ("base", LoraOptions(merge=True), "--merge"),
        (
            "base",
            LoraOptions(4, None, ("q_proj", "attention")),
            "--lora-target-modules attention: .* has down_proj, gate",
        ),
        ("base", LoraOptions(4, None, ("lm_head",)), "--lora-target-modules lm_head"),
        ("adapter", LoraOptions(8), "is an adapter of rank 4, alpha 8 on q_proj, v_proj"),
        (None, LoraOptions(4), "pass --model"),
    ],
)
def test_what_cannot_be_planned_is_told(base: Path, adapter: Path, on: str | None, asked: LoraOptions, told: str):
    policy = {"base": base, "adapter": adapter, None: None}[on]
    with pytest.raises(UserError, match=told):
        lora.plan(policy, asked)


def test_without_peft_one_line_says_what_to_install(base: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'spo-cli\[lora\]'"):
        lora.plan(base, LoraOptions(r=4))


def test_a_critic_may_begin_from_an_adapter(adapter: Path):
    from stages.optimization.critic import open_critic

    critic = open_critic(adapter, AdamWConfig(), device="cpu")
    assert all(parameter.requires_grad for parameter in critic.model.parameters())
