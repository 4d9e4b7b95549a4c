"""Test that a damaged, edited or hostile model directory is one line, whatever is wrong with it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.core.errors import SpoError, UserError
from stages.models import checkpoints, loading
from stages.optimization.optimizer import load_state
from stages.sampling.transformers import open_sampler
from stages.shards.lineage import read_lineage
from stages.training.resumable import read_metrics

CPU = torch.device("cpu")
Damage = Callable[[Path], object]


def update(name: str, **values: Any) -> Damage:
    def change(directory: Path) -> None:
        content = json.loads((directory / name).read_text())
        (directory / name).write_text(json.dumps(content | values))

    return change


def write(name: str, content: bytes) -> Damage:
    return lambda directory: (directory / name).write_bytes(content)


def reshape(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def spoil(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


class Deadly:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("ran").touch, ())


def pickled(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Deadly()))


DAMAGE: dict[str, tuple[Damage, str]] = {
    "one layer less": (update("config.json", num_hidden_layers=1, layer_types=["full_attention"]), "does not have"),
    "one layer more": (update("config.json", num_hidden_layers=3, layer_types=["full_attention"] * 3), "lack"),
    "torn generation settings": (write("generation_config.json", b""), "generation_config.json is not JSON"),
    "null generation settings": (write("generation_config.json", b"null"), "it holds null; expected an object"),
    "a torn configuration": (write("config.json", b'{"model'), "config.json is not JSON"),
    "a deep configuration": (write("config.json", b'{"a":' * 9999), "nest too deep"),
    "no heads": (update("config.json", num_attention_heads=0), "num_attention_heads 0; expected"),
    "a context of text": (update("config.json", max_position_embeddings="4k"), "max_position_embeddings"),
    "a trillion layers": (update("config.json", num_hidden_layers=10**12), "num_hidden_layers"),
    "an unknown activation": (update("config.json", hidden_act="sofa"), "cannot be loaded"),
    "a huge epsilon": (update("config.json", rms_norm_eps=1e30), r"rms_norm_eps 1e\+30"),
    "an end token of text": (update("generation_config.json", eos_token_id="</s>"), "end-of-text token '</s>'"),
    "a null tokenizer": (write("tokenizer.json", b"null"), "the tokenizer in .* cannot be loaded"),
    "a torn tokenizer": (write("tokenizer.json", b'{"version"'), "the tokenizer in .* cannot be loaded"),
    "null settings of the tokenizer": (write("tokenizer_config.json", b"null"), "tokenizer_config.json"),
    "pickled weights that run code": (pickled, "cannot be loaded"),
    "weights of another shape": (reshape, "cannot be loaded"),
    "weights with a NaN": (spoil, "computes NaN"),
    "an index of no weights": (write("model.safetensors.index.json", b"[]"), "expected an object"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_reported_in_one_line(name: str, directory: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(directory.parent)
    damage, problem = DAMAGE[name]
    damage(directory)
    with pytest.raises(UserError, match=problem) as caught:
        open_sampler(checkpoints.resolve(str(directory)))
    assert "\n" not in str(caught.value)
    assert not Path("ran").exists()


IMPOSSIBLE: list[Any] = [None, -1, 0, 10**18, "abc", [], {}, 1e30, float("nan")]


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_any_value_of_any_setting_is_accepted_or_refused_in_one_line(file: str, directory: Path):
    content = json.loads((directory / file).read_text())
    refused = 0
    for number, key in enumerate(content):
        for value in IMPOSSIBLE[number % 2 :: 2]:
            (directory / file).write_text(json.dumps(content | {key: value}))
            try:
                model = loading.load_model(checkpoints.resolve(str(directory)), CPU, torch.float32)
                loading.load_tokenizer(directory)("text")
                assert model(torch.zeros(1, 3, dtype=torch.long)).logits.isfinite().all()
            except SpoError as error:
                refused += len(str(error).splitlines())
    assert refused > len(content) / 4


def test_negative_end_tokens_end_nothing(directory: Path):
    update("generation_config.json", eos_token_id=-1)(directory)
    assert open_sampler(directory).is_end.nonzero()[0].tolist() == [256]


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b'{"stage": 1}', b"\xff", b'{"a":' * 9999])
def test_damaged_records_are_one_line(content: bytes, directory: Path):
    for name in ("spo.json", "metrics.jsonl", "optimizer.state"):
        (directory / name).write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*spo\.json"):
        read_lineage(directory)
    if content and content != b'{"stage": 1}':
        with pytest.raises(UserError, match=r"metrics\.jsonl line 1"):
            read_metrics(directory)
    with pytest.raises(UserError, match="optimizer-state fresh"):
        load_state(directory / "optimizer.state", {})


def test_keys_of_a_tokenizer_are_not_printed(directory: Path, capfd: pytest.CaptureFixture[str]):
    content = json.loads((directory / "tokenizer.json").read_text())
    content["added_tokens"][0]["\x1b[2J"] = 1  # native code prints unknown keys
    (directory / "tokenizer.json").write_text(json.dumps(content))
    try:
        loading.load_tokenizer(directory)
    finally:
        assert capfd.readouterr() == ("", "")
