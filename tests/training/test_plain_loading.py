"""Test that plain transformers and peft load the directories that `spo train` writes: full, LoRA, with a critic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from stages import train
from stages.models import loading
from tests.chains import cut, value

PROMPT = list(b"3B+5C")


@pytest.fixture(scope="module")
def advantages(chain: Path, policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return advantages by a critic whose head is zero, for the trajectories of the policy."""
    here = tmp_path_factory.mktemp("plain")
    cut(here / "cutpoints", chain / "trajectories", partition="token")
    value(here / "advantages", here / "cutpoints", estimator="critic", critic=str(policy), rollouts=None)
    return here / "advantages"


def trained(advantages: Path, out: Path, **options: Any) -> Path:
    given: dict[str, Any] = {"mask": "all", "beta": 0.0, "learning_rate": 1e-3, "threads": 1} | options
    train.run(train.Config(advantages=(advantages,), out=out, **given))
    return out


def next_logprobs(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(torch.tensor([PROMPT])).logits[0, -1].float().log_softmax(-1)


def test_full_weights_an_adapter_and_a_critic_load(advantages: Path, policy: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    full = trained(advantages, tmp_path / "full", critic_learning_rate=1e-3)
    for name in ("optimizer.state", "critic/model.safetensors", "critic/value_head.state", "README.md"):
        assert (full / name).is_file()
    assert [path.name for path in full.glob("*.safetensors")] == ["model.safetensors"]  # loaders take each for weights
    layers = ("q_proj", "v_proj")
    adapter = trained(advantages, tmp_path / "adapter", model=str(full), lora_r=8, lora_target_modules=layers)
    base = next_logprobs(AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32))
    plain = AutoModelForCausalLM.from_pretrained(full, dtype=torch.float32)
    of_full, of_adapter = next_logprobs(plain), next_logprobs(PeftModel.from_pretrained(plain, str(adapter)))
    assert float((of_full - base).abs().max()) > 0.01
    assert float((of_adapter - of_full).abs().max()) > 0.01
    for directory, expected in ((full, of_full), (adapter, of_adapter)):
        own = loading.load_model(directory, torch.device("cpu"), torch.float32)
        torch.testing.assert_close(next_logprobs(own), expected, rtol=0, atol=1e-4)
