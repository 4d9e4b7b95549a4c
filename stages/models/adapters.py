"""What the directory of a low-rank adapter says (LoRA, arXiv 2106.09685): W + α/r · B A for some matrices W of a base.

    adapter_config.json          r, α, the adapted layers; the base: a directory, or a name on the hub
    adapter_model.safetensors    A and B of every adapted layer
    base.json                    where the base lies as seen from here, and its digest, so that both may move together

The first two are peft's own format, which peft and vLLM load as it is. Nothing here computes: `stages.models.lora`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core.errors import UserError

CONFIG_FILE = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
BASE_FILE = "base.json"
MERGED = "merged"
"""Within an adapter's directory, the whole model: base and adapter in one."""


@dataclass(frozen=True)
class Lora:
    """What is trained in place of the weights.

    Attributes:
      r: the rank.
      alpha: the change is scaled by alpha / r.
      targets: names of the adapted linear layers, such as `q_proj`, sorted.
    """

    r: int
    alpha: float
    targets: tuple[str, ...]

    def options(self) -> dict[str, Any]:
        """As the flags that ask for it are named."""
        return {"lora_r": self.r, "lora_alpha": self.alpha, "lora_target_modules": self.targets}


@dataclass(frozen=True)
class Asked:
    """What a user says of an adapter; None and () where nothing is said.

    Attributes:
      r, alpha, targets: as in `Lora`.
      merge: the whole model is to be written beside it.
    """

    r: int | None = None
    alpha: float | None = None
    targets: tuple[str, ...] = ()
    merge: bool = False


def is_adapter(directory: Path) -> bool:
    """Whether a model directory holds an adapter instead of whole weights."""
    return (directory / CONFIG_FILE).is_file()


def read_lora(directory: Path) -> Lora:
    """What an adapter is.

    Raises:
      UserError: it cannot be read, or is no LoRA over named layers.
    """
    told = read_settings(directory)
    targets = told.get("target_modules")
    if told.get("peft_type") != "LORA" or not isinstance(targets, list):
        raise UserError(f"{directory / CONFIG_FILE} is of {told.get('peft_type')}; expected LORA over named layers")
    return Lora(int(told["r"]), float(told["lora_alpha"]), tuple(sorted(targets)))


def bases(directory: Path) -> list[tuple[str, str | None]]:
    """Where the base of an adapter may be, likeliest first: beside it, or as it is named (a path, or a name on the hub
    with its revision if one is meant).

    Raises:
      UserError: the adapter does not say.
    """
    told, beside = read_settings(directory), directory / _base(directory).get("path", "")
    found: list[tuple[str, str | None]] = []
    if beside != directory and beside.is_dir():
        found.append((str(beside.resolve()), None))
    name = told.get("base_model_name_or_path")
    if isinstance(name, str) and name:
        found.append((name, None if Path(name).is_dir() else told.get("revision")))
    if not found:
        raise UserError(f"{directory / CONFIG_FILE} names no base model (base_model_name_or_path)")
    return found


def base_digest(directory: Path) -> str | None:
    """What the base's digest was when the adapter was written; None for an adapter from elsewhere."""
    return _base(directory).get("digest")


def settings_that_matter(directory: Path) -> str:
    """The adapter's configuration as one text, without where the base lies: equal adapters give equal texts."""
    told = read_settings(directory)
    passed_over = {"base_model_name_or_path", "revision", "peft_version", "inference_mode"}
    return json.dumps({name: _ordered(told[name]) for name in sorted(told) if name not in passed_over})


def read_settings(directory: Path) -> dict[str, Any]:
    """`adapter_config.json`.

    Raises:
      UserError: it cannot be read.
    """
    return _read(directory / CONFIG_FILE)


def _base(directory: Path) -> dict[str, Any]:
    path = directory / BASE_FILE
    return _read(path) if path.is_file() else {}


def _read(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(told, dict):
        raise UserError(f"{path} holds no JSON object")
    return told


def _ordered(value: Any) -> Any:
    """peft writes sets in any order."""
    return sorted(value, key=str) if isinstance(value, list) else value
