"""Adapters: plans, merged weights, digests, and the search for the base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.core.errors import UserError
from stages.models import adapters, checkpoints, loading, lora, saving
from stages.models.adapters import Lora, LoraOptions
from stages.models.presets import make_model
from stages.optimization.torch import open_engine
from tests.adapter_training import SMALL, logits, save_base, train_adapter
from tests.families import make_config

CPU = torch.device("cpu")
LAYERS = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    """An adapter in a directory next to its base."""
    return train_adapter(base, base.with_name("adapter"))


def test_peft_loads_an_adapter_unchanged(adapter: Path, monkeypatch: pytest.MonkeyPatch):
    from peft import AutoPeftModelForCausalLM

    monkeypatch.chdir(adapter)  # the path of the base is relative to the adapter

    theirs = AutoPeftModelForCausalLM.from_pretrained(str(adapter), dtype=torch.float32)
    assert torch.equal(logits(theirs.eval()), logits(open_engine(adapter, device="cpu").model))
    assert not (adapter / "README.md").exists()


def test_loading_an_adapter_merges_it_into_its_base(base: Path, adapter: Path):
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


def test_the_adapted_layers_are_named_and_fused_experts_too(tmp_path: Path):
    make_config("qwen3_moe").save_pretrained(tmp_path / "moe")
    line = lora.describe(Lora(4, 8.0, ("q_proj", "v_proj")), tmp_path / "moe")
    assert "rank 4 on q_proj, v_proj;" in line
    assert "fused experts (experts.down_proj, experts.gate_up_proj) are no linear layers: they are not adapted" in line
    make_config("mamba2").save_pretrained(tmp_path / "recurrent")
    assert "experts" not in lora.describe(Lora(4, 8.0, ("in_proj",)), tmp_path / "recurrent")


def test_an_engine_that_reads_no_adapters_gets_full_weights(base: Path, adapter: Path, tmp_path: Path):
    assert lora.whole_directory(base, tmp_path) == base
    (tmp_path / "merged-of-another").mkdir()
    written = lora.whole_directory(adapter, tmp_path, torch.bfloat16)
    assert list(tmp_path.iterdir()) == [written]
    assert {value.dtype for value in load_file(written / "model.safetensors").values()} == {torch.bfloat16}
    assert lora.whole_directory(adapter, tmp_path) == written
    copied = tmp_path / "adapter"
    shutil.copytree(adapter, copied)
    lora.write_merged(copied, copied / adapters.MERGED)
    assert lora.whole_directory(copied, tmp_path) == copied / adapters.MERGED


def test_the_digest_covers_base_and_adapter_but_not_their_locations(base: Path, adapter: Path, tmp_path: Path):
    expected = checkpoints.digest(adapter)
    assert expected != checkpoints.digest(base)
    for directory in (base, adapter):
        shutil.copytree(directory, tmp_path / directory.name)
    copied = tmp_path / "adapter"
    config = json.loads((copied / adapters.CONFIG_FILE).read_text())
    config |= {"base_model_name_or_path": "/no/longer/there", "target_modules": ["v_proj", "q_proj"]}
    (copied / adapters.CONFIG_FILE).write_text(json.dumps(config))
    assert checkpoints.base_of(copied).resolve() == tmp_path / "base"
    assert checkpoints.digest(copied) == expected
    config["base_model_name_or_path"] = str(base)
    (copied / adapters.CONFIG_FILE).write_text(json.dumps(config))
    saving.save_directory(tmp_path / "base", *make_model("tiny", 1))  # another model at the relative path
    assert checkpoints.base_of(copied) == base
    assert checkpoints.digest(copied) == expected
    (copied / adapters.CONFIG_FILE).write_text(json.dumps(config | {"lora_alpha": 16.0}))
    assert checkpoints.digest(copied) != expected


def test_the_name_of_the_base_alone_moves_with_it(base: Path, adapter: Path, tmp_path: Path):
    for directory in (base, adapter):
        shutil.copytree(directory, tmp_path / directory.name)
    (tmp_path / "adapter" / adapters.BASE_FILE).unlink()
    assert checkpoints.base_of(tmp_path / "adapter") == tmp_path / "base"


def test_a_changed_or_missing_base_is_an_error(base: Path, adapter: Path, tmp_path: Path):
    for directory in (base, adapter):
        shutil.copytree(directory, tmp_path / directory.name)
    config = json.loads((tmp_path / "adapter" / adapters.CONFIG_FILE).read_text())
    config["base_model_name_or_path"] = "/no/longer/there"
    (tmp_path / "adapter" / adapters.CONFIG_FILE).write_text(json.dumps(config))
    recorded = json.loads((tmp_path / "adapter" / adapters.BASE_FILE).read_text())
    (tmp_path / "adapter" / adapters.BASE_FILE).write_text(json.dumps(recorded | {"absolute": "/not/there"}))
    saving.save_directory(tmp_path / "base", *make_model("tiny", 1))
    with pytest.raises(UserError, match="has changed since the adapter was trained"):
        checkpoints.resolve(str(tmp_path / "adapter"))
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(UserError, match="there is no model directory /no/longer/there"):
        checkpoints.resolve(str(tmp_path / "adapter"))


def test_a_torn_adapter_is_an_error(adapter: Path, base: Path, tmp_path: Path):
    torn = tmp_path / "torn"
    shutil.copytree(adapter, torn)
    weights = load_file(adapter / adapters.WEIGHTS[0])
    weights.pop(next(iter(weights)))
    save_file(weights, torn / adapters.WEIGHTS[0])
    with pytest.raises(UserError, match="missing adapter keys"):
        loading.load_model(torn, CPU, torch.float32)
    (torn / adapters.WEIGHTS[0]).write_bytes((adapter / adapters.WEIGHTS[0]).read_bytes()[:100])
    with pytest.raises(UserError, match=r"the adapter of .* cannot be loaded"):
        loading.load_model(torn, CPU, torch.float32)


def test_the_plan_is_a_new_adapter_the_policys_own_or_none(base: Path, adapter: Path):
    assert lora.plan(base, LoraOptions()) is None
    assert lora.plan(base, LoraOptions(r=4)) == Lora(4, 8.0, LAYERS)
    assert lora.plan(base, LoraOptions(4, 1.0, ("v_proj", "q_proj"))) == Lora(4, 1.0, ("q_proj", "v_proj"))
    assert lora.plan(adapter, LoraOptions()) == lora.plan(adapter, LoraOptions(4, 8.0, ("v_proj", "q_proj"))) == SMALL


@pytest.mark.parametrize(
    ("on", "options", "message"),
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
def test_options_that_cannot_be_planned_are_rejected(
    base: Path, adapter: Path, on: str | None, options: LoraOptions, message: str
):
    policy = {"base": base, "adapter": adapter, None: None}[on]
    with pytest.raises(UserError, match=message):
        lora.plan(policy, options)


def test_without_peft_the_error_names_the_package_to_install(base: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'spo-cli\[lora\]'"):
        lora.plan(base, LoraOptions(r=4))
