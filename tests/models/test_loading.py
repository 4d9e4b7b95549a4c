"""Load models and tokenizers from model directories."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.core.errors import UserError
from stages.models import checkpoints, loading
from stages.models.presets import make_byte_tokenizer, make_model

CPU = torch.device("cpu")
TOKENIZER = make_byte_tokenizer()


def test_the_tokenizer_survives_saving(directory: Path):
    text = "1B+0C\0\r\n\t🙂 don 't , ñ ./ <|endoftext|>"
    tokenizer = loading.load_tokenizer(directory)
    assert tokenizer(text)["input_ids"] == TOKENIZER(text)["input_ids"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)) == (256, 257, 258)


def test_a_saved_model_is_the_same_model(original: Path):
    loaded = loading.load_model(checkpoints.resolve(str(original)), CPU, torch.float32)
    made = make_model("tiny", 0)[0].state_dict()
    assert all(torch.equal(tensor, made[name]) for name, tensor in loaded.state_dict().items())
    assert not loaded.training
    assert loading.load_model(original, CPU, torch.bfloat16).dtype == torch.bfloat16


def test_torn_or_incomplete_weights_are_rejected(directory: Path):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 tensors, the first is model\.norm\.weight"):
        loading.load_model(directory, CPU, torch.float32)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        loading.load_model(directory, CPU, torch.float32)


def test_a_model_with_its_own_code_is_rejected_and_the_code_not_run(directory: Path, tmp_path: Path):
    config = json.loads((directory / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match="cannot be loaded"):
        loading.load_model(directory, CPU, torch.float32)
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_without_an_end_token_is_rejected(directory: Path):
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": None}))
    with pytest.raises(UserError, match="no end-of-text token"):
        loading.load_tokenizer(directory)
