"""Write the model card of a trained model: README.md with the header that the Hugging Face hub reads.

The card says how the model was made, from which base and under which license the base is. Like the lineage, it contains
nothing that varies between two runs of the same work.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from stages.core.storage import write_atomically
from stages.models import adapters, checkpoints
from stages.shards.lineage import MODEL_FILE, Lineage

CARD_FILE = "README.md"
_LICENSE = ("license", "license_name", "license_link")
_TITLES = {"sft": "Supervised fine-tuning", "train": "Segment Policy Optimization"}


def write_card(directory: Path, lineage: Lineage, base: Path | None) -> None:
    """Write the card into the directory of a model.

    Args:
      directory: the model directory, with its weights.
      base: local directory of the model that was trained; None if it was made from scratch.
    """
    header = {"library_name": "peft" if adapters.is_adapter(directory) else "transformers"}
    header |= {"pipeline_tag": "text-generation"} | _inherited(base)
    lines = ["---", *(f"{name}: {value}" for name, value in header.items()), "tags:", "- spo", "---", ""]
    lines += [f"# {_TITLES[lineage.stage]}", "", *_origin(lineage, header, base), ""]
    lines += _table("Metrics", ("Mean over the steps", "Value"), lineage.summary)
    lines += _table("Counts", ("Count", "Value"), lineage.counts)
    lines += _table("Options", ("Option", "Value"), lineage.config)
    lines += _table("Versions", ("Package", "Version"), lineage.versions)
    write_atomically(directory / CARD_FILE, "\n".join(lines).encode())


def _inherited(base: Path | None) -> dict[str, str]:
    """Return the entries of the header that depend on the base: its name on the hub, and its license."""
    if base is None:
        return {}
    of_base = read_header(base)
    found = {name: of_base[name] for name in _LICENSE if name in of_base}
    name, _ = checkpoints.public_name(base)
    if "://" not in name and not Path(name).is_absolute():
        return {"base_model": name} | found
    if (base / MODEL_FILE).is_file() and "base_model" in of_base:  # made by spo: the base of its base
        return {"base_model": of_base["base_model"]} | found
    return found


def read_header(directory: Path) -> dict[str, str]:
    """Return the one-line entries of the header of a model card, and the first item of lists; none without a card."""
    card = directory / CARD_FILE
    text = card.read_text(errors="replace") if card.is_file() else ""
    header = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    entries = re.findall(r"^(\w+):[ \t]*(?:\n\s*- )?(\S[^\n]*)$", header[1], re.MULTILINE) if header else []
    return {name: value.strip().strip("\"'") for name, value in entries}


def _origin(lineage: Lineage, header: dict[str, str], base: Path | None) -> list[str]:
    """Return the lines about the base, its license and the inputs."""
    if base is None:
        lines = ["- Base: none, new weights"]
    else:
        source = lineage.model.path if lineage.model else header.get("base_model", "unknown")
        lines = [f"- Trained model: `{source}`"]
        if "base_model" in header:
            lines.append(f"- Base model: `{header['base_model']}`")
        known = header.get("license_name") or header.get("license")
        lines.append(f"- License of the base: {known or 'not stated in its model card; look it up before you publish'}")
    lines += [
        f"- Input: `{source.path}` ({source.stage}, fingerprint {source.fingerprint})" for source in lineage.inputs
    ]
    lines.append(f"- Fingerprint of this work: {lineage.fingerprint}; the whole record is in `{MODEL_FILE}`")
    return lines


def _table(title: str, columns: tuple[str, str], entries: dict[str, Any]) -> list[str]:
    """Return a section with one row for each entry that has a value; nothing without entries."""
    rows = [f"| `{name}` | {_cell(value)} |" for name, value in sorted(entries.items()) if value is not None]
    head = [f"## {title}", "", f"| {columns[0]} | {columns[1]} |", "|---|---|"]
    return [*head, *rows, ""] if rows else []


def _cell(value: Any) -> str:
    """Return a value as the text of a cell, on one line."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")
