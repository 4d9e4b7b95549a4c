"""Convert a GGUF file to a model directory in Hugging Face format: python from_gguf.py MODEL.gguf DIRECTORY.

Needs the package gguf. The weights become float32; configuration, tokenizer, chat template and license are those in the
metadata of the file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader  # pyright: ignore[reportMissingImports]: `make real-model` installs it
from transformers import AutoModelForCausalLM, AutoTokenizer


def convert(file: Path, directory: Path) -> None:
    """Write the model of a GGUF file as a model directory, with a card that states its license."""
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # The weights are plain numbers now. With these two, transformers would refuse to save them, and vLLM to load them.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    terms = GGUFReader(file).fields.get("general.license")
    header = f"---\nlicense: {terms.contents()}\n---\n" if terms else ""
    (directory / "README.md").write_text(f"{header}# {file.stem}\n\nConverted from `{file.name}`.\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
