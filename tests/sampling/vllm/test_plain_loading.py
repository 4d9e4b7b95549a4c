"""Test that plain vLLM and transformers load the directories that `spo train` writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from stages.models.adapters import Lora
from stages.models.presets import make_byte_tokenizer
from stages.optimization.batches import Example
from stages.optimization.objective import Objective
from stages.optimization.step import update
from stages.optimization.torch import open_engine
from tests.families import make_model

pytestmark = pytest.mark.xdist_group("vllm")


def trained(base: Path, out: Path, adapter: Lora | None = None) -> Path:
    """Take one step from a model and save it with the state of its optimizer."""
    engine = open_engine(base, device="cpu", adapter=adapter)
    example = Example(np.arange(12, dtype=np.int32), np.arange(1, 12), np.linspace(-1, 1, 11))
    update(engine, [example], Objective(), 1, 1e-2)
    engine.save(out, make_byte_tokenizer(), lambda directory: None)
    assert (out / "optimizer.state").is_file()
    return out


def test_checkpoints_load_in_plain_vllm_and_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vllm = pytest.importorskip("vllm")
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    torch.set_num_threads(1)
    base = tmp_path / "base"
    make_model("llama", hidden_size=64, head_dim=32, num_attention_heads=2, initializer_range=0.05).save_pretrained(
        base
    )
    make_byte_tokenizer().save_pretrained(base)
    checkpoint = trained(base, tmp_path / "checkpoint")
    from peft import PeftModel

    adapter = trained(base, tmp_path / "adapter", Lora(4, 8.0, ("q_proj", "v_proj")))
    wrapped = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))
    assert any(float(value.abs().max()) > 0 for name, value in wrapped.named_parameters() if "lora_B" in name)

    prompt = [72, 101, 108, 108, 111]
    expected = AutoModelForCausalLM.from_pretrained(checkpoint)(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    llm = vllm.LLM(
        str(checkpoint),
        dtype="float32",
        enforce_eager=True,
        max_model_len=64,
        gpu_memory_utilization=0.05,
        max_num_seqs=2,
    )
    params = vllm.SamplingParams(temperature=0, max_tokens=1, logprobs=1)
    (output,) = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
    ((token, found),) = output.outputs[0].logprobs[0].items()
    assert token == int(expected.argmax())
    assert abs(found.logprob - float(expected.max())) < 1e-3
