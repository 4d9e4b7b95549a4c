"""Test the model cards of trained models: the header is what the Hugging Face hub reads, the text is the lineage."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from stages.models import adapters
from stages.shards.lineage import Lineage, Source, write_lineage
from stages.training.model_card import read_header, write_card

LINEAGE = Lineage(
    stage="train",
    schema_version=1,
    config={"learning_rate": 1e-6, "mask": "all", "replay": None, "stop": "a | b"},
    seed=0,
    fingerprint="f00d",
    inputs=(Source("../advantages", "beef", "estimate"),),
    model=Source("../base", "cafe", "model"),
    counts={"steps": 3},
    summary={"reward": 0.123456789},
)


def on_the_hub(cache: Path, card: str) -> Path:
    """Return a directory that is laid out as a download from the hub, with a model card."""
    directory = cache / "models--HuggingFaceTB--SmolLM2-135M/snapshots/0123abc"
    directory.mkdir(parents=True)
    (directory / "README.md").write_text(card)
    return directory


def written(directory: Path, base: Path | None, lineage: Lineage = LINEAGE) -> ModelCard:
    """Write the card of a model, as it is done at the end of training, and read it as the hub does."""
    directory.mkdir(exist_ok=True)
    write_lineage(directory, lineage)
    write_card(directory, lineage, base)
    return ModelCard.load(directory / "README.md")


def test_a_model_has_the_name_and_license_of_its_base(tmp_path: Path) -> None:
    base = on_the_hub(tmp_path, "---\nlicense: apache-2.0\nlanguage:\n- en\n---\n# SmolLM2\n")
    card = written(tmp_path / "model", base)
    assert card.data.to_dict() == {
        "base_model": "HuggingFaceTB/SmolLM2-135M",
        "library_name": "transformers",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["spo"],
    }
    for fact in (
        "`../base`",
        "`../advantages` (estimate, fingerprint beef)",
        "| `reward` | 0.123457 |",
        "| `steps` | 3 |",
    ):
        assert fact in card.text
    assert "| `mask` | all |" in card.text
    assert "| `stop` | a \\| b |" in card.text
    assert "replay" not in card.text
    assert str(tmp_path) not in card.text


def test_a_model_of_a_later_iteration_names_the_first_base(tmp_path: Path) -> None:
    base = on_the_hub(tmp_path, "---\nlicense: other\nlicense_name: llama3\nlicense_link: LICENSE\n---\n")
    written(tmp_path / "000", base)
    later = written(tmp_path / "001", tmp_path / "000")
    assert later.data.to_dict()["base_model"] == "HuggingFaceTB/SmolLM2-135M"
    assert later.data.to_dict()["license_name"] == "llama3"
    assert "License of the base: llama3" in later.text


def test_a_base_without_card_has_no_license_and_no_name(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    card = written(tmp_path / "model", tmp_path / "base")
    assert not {"license", "base_model"} & set(card.data.to_dict())
    assert "not stated in its model card" in card.text


def test_a_model_from_scratch_and_an_adapter_say_so(tmp_path: Path) -> None:
    assert "Base: none, new weights" in written(tmp_path / "model", None).text
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / adapters.CONFIG_FILE).write_text("{}")
    assert written(tmp_path / "adapter", tmp_path / "model").data.to_dict()["library_name"] == "peft"


@pytest.mark.parametrize(
    ("card", "found"),
    [
        ("no header\nlicense: mit\n", {}),
        ("---\nlicense: 'mit'\nbase_model:\n- a/b\n- c/d\n---\n", {"license": "mit", "base_model": "a/b"}),
        ("---\nlicense: mit\nno end of the header", {}),
    ],
)
def test_headers_are_read_line_by_line(card: str, found: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card)
    assert read_header(tmp_path) == found
