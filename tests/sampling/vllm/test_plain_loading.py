"""Test that plain vLLM and transformers load the directories that `spo train` writes: full, LoRA, with a critic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from stages import train
from stages.models.presets import make_byte_tokenizer
from tests.chains import cut, sample, value
from tests.families import make_model
from tests.sampling.vllm.conftest import plain_vllm, require_cpu_build

pytestmark = pytest.mark.xdist_group("vllm")
PROMPT = [72, 101, 108, 108, 111]


def is_even(completions: Sequence[str], answer: Sequence[str]) -> list[float]:
    """Return 1 for about half of the responses: a reward that an untrained model sometimes earns."""
    return [float(sum(map(ord, text)) % 2 == 0) for text in completions]


@pytest.fixture(scope="module")
def advantages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return advantages by a critic, for trajectories of the untrained model `base` beside them."""
    require_cpu_build()
    here = tmp_path_factory.mktemp("plain")
    model = make_model("llama", hidden_size=64, head_dim=32, num_attention_heads=2, initializer_range=0.05)
    assert model.generation_config
    model.generation_config.eos_token_id = list(range(128, 257))  # every second token ends a response
    model.save_pretrained(here / "base")
    make_byte_tokenizer().save_pretrained(here / "base")
    (here / "train.jsonl").write_text('{"question": "How?", "answer": "a"}\n{"question": "Why?", "answer": "b"}\n')
    reward = f"reward={__name__}:is_even"
    task: dict[str, Any] = {"task": "custom", "data": str(here / "train.jsonl"), "task_arg": (reward,)}
    sample(here / "trajectories", here / "base", **task, num_questions=2, num_generations=4, max_tokens=8)
    cut(here / "cutpoints", here / "trajectories", partition="token")
    value(
        here / "advantages", here / "cutpoints", estimator="critic", critic=str(here / "base"), gae_lambda=1.0,
        rollouts=None,
    )  # fmt: skip
    return here / "advantages"


def trained(advantages: Path, out: Path, **options: Any) -> Path:
    given: dict[str, Any] = {"mask": "all", "beta": 0.0, "learning_rate": 1e-2, "threads": 1} | options
    train.run(train.Config(advantages=(advantages,), out=out, **given))
    return out


def next_logprobs(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(torch.tensor([PROMPT])).logits[0, -1].float().log_softmax(-1)


def test_checkpoints_load_in_plain_vllm_and_transformers(advantages: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    full = trained(advantages, tmp_path / "full", critic_learning_rate=1e-3)
    assert (full / "critic").is_dir()
    layers = ("q_proj", "v_proj")
    adapter = trained(advantages, tmp_path / "adapter", model=str(full), lora_r=8, lora_target_modules=layers)
    base = next_logprobs(AutoModelForCausalLM.from_pretrained(advantages.with_name("base"), dtype=torch.float32))
    plain = AutoModelForCausalLM.from_pretrained(full, dtype=torch.float32)
    expected = {"full": next_logprobs(plain), "adapter": next_logprobs(PeftModel.from_pretrained(plain, str(adapter)))}
    assert float((expected["full"] - base).abs().max()) > 0.01
    assert float((expected["adapter"] - expected["full"]).abs().max()) > 0.01

    params = SamplingParams(temperature=0, max_tokens=1, logprobs=1)
    with plain_vllm(full, max_model_len=64, enable_lora=True, max_lora_rank=8) as llm:
        for name, request in (("full", None), ("adapter", LoRARequest("adapter", 1, str(adapter)))):
            (output,) = llm.generate([{"prompt_token_ids": PROMPT}], params, use_tqdm=False, lora_request=request)
            ((token, found),) = output.outputs[0].logprobs[0].items()
            assert token == int(expected[name].argmax())
            assert abs(found.logprob - float(expected[name].max())) < 1e-3
