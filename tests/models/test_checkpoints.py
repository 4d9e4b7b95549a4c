"""Find, check and digest model directories."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.core.errors import UserError
from stages.models import checkpoints, saving
from stages.models.presets import make_model
from stages.shards.lineage import Lineage, read_lineage, write_lineage

LINEAGE = Lineage(stage="sft", schema_version=1, config={"preset": "tiny"}, seed=0, fingerprint="f00d")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    saving.save_directory(directory, *make_model("tiny", 0), lambda unfinished: write_lineage(unfinished, LINEAGE))
    return directory


def test_the_digest_covers_weights_configuration_and_tokenizer_only(directory: Path):
    before = checkpoints.digest(directory)
    (directory / "spo.json").unlink()
    (directory / "metrics.jsonl").write_text("{}")
    (directory / "optimizer.state").write_bytes(b"state")
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
def test_an_incomplete_directory_is_rejected_with_the_missing_file(directory: Path, name: str, missing: str):
    (directory / name).unlink()
    with pytest.raises(UserError, match=missing) as raised:
        checkpoints.resolve(str(directory))
    assert "\n" not in str(raised.value)


def test_a_missing_model_is_an_error_in_one_line(tmp_path: Path):
    with pytest.raises(UserError, match="there is no model directory"):
        checkpoints.resolve(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="is a file; expected a Hugging Face model directory"):
        checkpoints.resolve(__file__)
    with pytest.raises(UserError, match=r"model.gguf is a GGUF file.* gguf_file=NAME"):
        checkpoints.resolve(str(tmp_path / "model.gguf"))
    for name in ("nobody/no-such-model", "not a name"):
        with pytest.raises(
            UserError, match="neither a local directory nor available on the Hugging Face hub"
        ) as raised:
            checkpoints.resolve(name)
        assert "\n" not in str(raised.value)


def test_the_lineage_is_stored_with_the_weights(directory: Path):
    assert read_lineage(directory) == LINEAGE
    (directory / "spo.json").write_text("{")
    with pytest.raises(UserError, match=r"spo\.json"):
        read_lineage(directory)
    (directory / "spo.json").unlink()
    assert read_lineage(directory) is None
