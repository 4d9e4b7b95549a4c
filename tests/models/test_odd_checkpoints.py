"""Test checkpoints as people have them: odd generation settings, processors, adapters on tied heads, few tokens."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.core.errors import UserError
from stages.models import loading, lora, saving
from stages.models.adapters import LoraOptions
from stages.models.presets import make_byte_tokenizer
from stages.optimization.lora import open_to_train
from stages.responses.prompts import Prompts, check_vocabulary
from stages.tasks import Question
from tests.families import make_model

CPU = torch.device("cpu")
OLD_SETTINGS = {"eos_token_id": [256, 7], "temperature": 0.6, "top_p": 0.9}
"""Sampling settings without do_sample: transformers loads them and refuses to save them."""


def write(directory: Path, model: Any) -> Path:
    model.save_pretrained(directory)
    make_byte_tokenizer().save_pretrained(directory)
    return directory


def test_settings_and_processors_are_kept_as_they_were_loaded(tmp_path: Path) -> None:
    source, copied = write(tmp_path / "source", make_model("qwen2")), tmp_path / "copied"
    (source / saving.GENERATION_FILE).write_text(json.dumps(OLD_SETTINGS))
    (source / "preprocessor_config.json").write_text("{}")
    model, tokenizer = loading.load_model(source, CPU, torch.float32), loading.load_tokenizer(source)
    saving.check_saving(model, tokenizer)
    saving.save_directory(copied, model, tokenizer)
    assert OLD_SETTINGS.items() <= json.loads((copied / saving.GENERATION_FILE).read_text()).items()
    assert (copied / "preprocessor_config.json").read_text() == "{}"
    assert loading.load_model(copied, CPU, torch.float32).generation_config.eos_token_id == [256, 7]  # pyright: ignore[reportOptionalMemberAccess]


def test_what_cannot_be_saved_is_refused_before_the_work(tmp_path: Path) -> None:
    model = make_model("qwen2")
    model.config.odd = object()
    with pytest.raises(UserError, match="qwen2 model could not be written after training"):
        saving.check_saving(model, make_byte_tokenizer())


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_on_a_tied_head_or_embedding_changes_that_one_alone(tmp_path: Path, target: str) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    base = write(tmp_path / "base", make_model("llama", tie_word_embeddings=True))
    torch.manual_seed(1)
    settings = LoraConfig(r=4, target_modules=["q_proj", target], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(loading.load_model(base, CPU, torch.float32), settings).save_pretrained(str(tmp_path / "adapter"))
    ids = torch.arange(20)[None]
    reference = PeftModel.from_pretrained(loading.load_model(base, CPU, torch.float32), str(tmp_path / "adapter"))
    merged = loading.load_model(tmp_path / "adapter", CPU, torch.float32)
    lora.write_merged(tmp_path / "adapter", tmp_path / "merged")
    written = loading.load_model(tmp_path / "merged", CPU, torch.float32)
    with torch.no_grad():
        expected = reference.eval()(ids).logits
        for model in (merged, written):
            torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=1e-4)


def test_the_linear_layers_of_gpt2_can_be_adapted(tmp_path: Path) -> None:
    base = write(tmp_path / "gpt2", make_model("gpt2"))
    planned = lora.plan(base, LoraOptions(r=4))
    assert planned is not None
    assert planned.targets == ("c_attn", "c_fc", "c_proj")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="fan_in_fan_out")  # peft's warning is of no use to the user
        open_to_train(base, CPU, torch.float32, planned)


def test_a_token_that_the_model_does_not_know_is_named() -> None:
    question = Question("q7", "What?", "1", None)
    check_vocabulary([Prompts([question], [np.array([1, 299], np.int32)])], 300)
    with pytest.raises(UserError, match="prompt of question q7 has token 300, but the model knows 300 tokens"):
        check_vocabulary([Prompts([question], [np.array([1, 300], np.int32)])], 300)
