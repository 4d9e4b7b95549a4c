"""Model directories: made from scratch, found, digested, loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.core.errors import UserError
from stages.models import checkpoints, devices, loading, saving
from stages.models.presets import CONTEXT_LENGTH, PRESETS, make_byte_tokenizer, make_model
from stages.shards.lineage import Lineage, read_lineage, write_lineage

CPU = torch.device("cpu")
LINEAGE = Lineage(stage="sft", schema_version=1, config={"preset": "tiny"}, seed=0, fingerprint="f00d")
TOKENIZER = make_byte_tokenizer()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    saving.save_directory(directory, *make_model("tiny", 0), lambda unfinished: write_lineage(unfinished, LINEAGE))
    return directory


@pytest.fixture
def directory(original: Path, tmp_path: Path) -> Path:
    """A copy to do damage to."""
    return Path(shutil.copytree(original, tmp_path / "model"))


@given(st.text())
def test_the_byte_tokenizer_reads_any_text(text: str):
    ids = TOKENIZER(text)["input_ids"]
    assert ids == list(text.encode())
    assert TOKENIZER.decode(ids) == text


def test_the_tokenizer_survives_saving(directory: Path):
    text = "1B+0C\0\r\n\t🙂 don 't , ñ ./ <|endoftext|>"
    tokenizer = loading.load_tokenizer(directory)
    assert tokenizer(text)["input_ids"] == TOKENIZER(text)["input_ids"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)) == (256, 257, 258)


def test_a_preset_depends_on_its_seed_alone():
    torch.manual_seed(5)
    untouched = torch.random.get_rng_state()
    first, again, other = (make_model("tiny", seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(torch.random.get_rng_state(), untouched)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_a_qwen2_with_room_for_a_worked_solution(preset: str):
    model, tokenizer = make_model(preset, 0)
    assert model.config.model_type == "qwen2"
    assert loading.context_length(model.config) == CONTEXT_LENGTH >= 1024
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(UserError, match="expected one of tiny, small"):
        make_model("huge", 0)


def test_a_saved_model_is_the_same_model(original: Path):
    loaded = loading.load_model(checkpoints.resolve(str(original)), CPU, torch.float32)
    made = make_model("tiny", 0)[0].state_dict()
    assert all(torch.equal(tensor, made[name]) for name, tensor in loaded.state_dict().items())
    assert not loaded.training
    assert loading.load_model(original, CPU, torch.bfloat16).dtype == torch.bfloat16


def test_the_digest_is_of_what_the_model_says_and_of_nothing_else(directory: Path):
    before = checkpoints.digest(directory)
    (directory / "spo.json").unlink()
    (directory / "metrics.jsonl").write_text("{}")
    (directory / "optimizer.safetensors").write_bytes(b"state")
    moved = directory.rename(directory.with_name("elsewhere"))
    assert checkpoints.digest(moved) == before
    for name in ("model.safetensors", "config.json", "tokenizer.json", "generation_config.json"):
        content = (moved / name).read_bytes()
        (moved / name).write_bytes(content + b" ")
        assert checkpoints.digest(moved) != before, name
        (moved / name).write_bytes(content)
    assert checkpoints.digest(moved) == before


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("tokenizer.json", "no tokenizer"),
        ("model.safetensors", "no weights"),
        ("config.json", "no configuration"),
    ],
)
def test_a_directory_that_lacks_something_is_refused_with_its_name(directory: Path, name: str, missing: str):
    (directory / name).unlink()
    with pytest.raises(UserError, match=missing) as raised:
        checkpoints.resolve(str(directory))
    assert "\n" not in str(raised.value)


def test_a_model_that_is_nowhere_is_told_in_one_line(tmp_path: Path):
    with pytest.raises(UserError, match="there is no model directory"):
        checkpoints.resolve(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="is a file; expected a Hugging Face model directory"):
        checkpoints.resolve(__file__)
    for name in ("nobody/no-such-model", "not a name"):
        with pytest.raises(
            UserError, match="neither a local directory nor available on the Hugging Face hub"
        ) as raised:
            checkpoints.resolve(name)
        assert "\n" not in str(raised.value)


def test_weights_that_are_torn_or_lack_tensors_are_refused(directory: Path):
    from safetensors.torch import load_file, save_file

    path = directory / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 tensors, the first is model\.norm\.weight"):
        loading.load_model(directory, CPU, torch.float32)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        loading.load_model(directory, CPU, torch.float32)


def test_a_model_that_brings_code_is_refused_and_its_code_not_run(directory: Path, tmp_path: Path):
    config = json.loads((directory / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match="cannot be loaded"):
        loading.load_model(directory, CPU, torch.float32)
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_without_an_end_token_is_refused(directory: Path):
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": None}))
    with pytest.raises(UserError, match="no end-of-text token"):
        loading.load_tokenizer(directory)


def test_the_lineage_lies_beside_the_weights(directory: Path):
    assert read_lineage(directory) == LINEAGE
    (directory / "spo.json").write_text("{")
    with pytest.raises(UserError, match=r"spo\.json"):
        read_lineage(directory)
    (directory / "spo.json").unlink()
    assert read_lineage(directory) is None


def test_devices_and_number_formats_are_picked_or_refused():
    assert devices.pick_device("cpu") == CPU
    assert devices.pick_dtype("auto", CPU) == torch.float32
    assert devices.pick_dtype("bfloat16", CPU) == torch.bfloat16
    with pytest.raises(UserError, match="--device warp"):
        devices.pick_device("warp")
    with pytest.raises(UserError, match="CUDA devices; use cpu or auto"):
        devices.pick_device(f"cuda:{torch.cuda.device_count()}")
    with pytest.raises(UserError, match="--dtype must be one of auto, float32"):
        devices.pick_dtype("int8", CPU)
