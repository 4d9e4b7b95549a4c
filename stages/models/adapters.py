"""Read the directories of low-rank adapters (LoRA, arXiv 2106.09685): W + α/r · B A for some matrices W of a base.

    adapter_config.json          r, α, the adapted layers, and the base: a directory, or a name on the hub
    adapter_model.safetensors    A and B of every adapted layer
    base.json                    the path of the base relative to this directory, its absolute path, and its digest

The first two files have peft's format; peft and vLLM load them unchanged. `base.json` keeps the adapter usable when
adapter and base move together, or the adapter alone. This module imports nothing heavy: the command line imports it.
`stages.models.lora` plans and merges adapters, `stages.models.loading` loads them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stages.core.errors import UserError
from stages.core.json_files import decoded, read_json
from stages.core.paths import AnyPath

CONFIG_FILE = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
BASE_FILE = "base.json"
MERGED = "merged"
"""Subdirectory of an adapter's directory with the merged model: base and adapter in one set of weights."""
PEFT_NAME = "default"
"""Name of the adapter inside peft's layers, which can hold several."""


@dataclass(frozen=True)
class Lora:
    """The shape of an adapter.

    Attributes:
      r: the rank.
      alpha: the update is scaled by alpha / r.
      targets: names of the adapted linear layers, such as `q_proj`, sorted.
    """

    r: int
    alpha: float
    targets: tuple[str, ...]

    def options(self) -> dict[str, Any]:
        """Return the values under the names of their command-line options."""
        return {"lora_r": self.r, "lora_alpha": self.alpha, "lora_target_modules": self.targets}


@dataclass(frozen=True)
class LoraOptions:
    """The adapter options of the command line; None and () for options that are not given.

    Attributes:
      r, alpha, targets: as in `Lora`.
      merge: also write the merged model.
    """

    r: int | None = None
    alpha: float | None = None
    targets: tuple[str, ...] = ()
    merge: bool = False


def require_peft() -> None:
    """Raise a UserError unless peft is installed."""
    if find_spec("peft") is None:
        raise UserError("adapters need the package peft, which is not installed: pip install 'spo-cli[lora]'")


def is_adapted(model: Any) -> bool:
    """Return whether a module has an adapter on it."""
    return bool(getattr(model, "peft_config", None))


def peft_config(model: Any) -> Any:
    """Return peft's configuration (`LoraConfig`) of the adapter on a module."""
    return model.peft_config[PEFT_NAME]


def is_adapter(directory: AnyPath) -> bool:
    """Return whether a model directory holds an adapter instead of full weights."""
    return (directory / CONFIG_FILE).is_file()


def read_lora(directory: AnyPath) -> Lora:
    """Read the shape of an adapter.

    Raises:
      UserError: the configuration is unreadable, or not of LoRA over named layers.
    """
    config = read_config(directory)
    targets = config.get("target_modules")
    if config.get("peft_type") != "LORA" or not isinstance(targets, list):
        raise UserError(
            f"{directory / CONFIG_FILE} has peft_type {config.get('peft_type')}; expected LORA over named layers"
        )
    return decoded(
        lambda: Lora(int(config["r"]), float(config["lora_alpha"]), tuple(sorted(targets))),
        str(directory / CONFIG_FILE),
    )


def bases(directory: AnyPath) -> list[tuple[str, str | None]]:
    """Return candidates for the base of an adapter as (path or hub name, hub revision), the most likely one first.

    They are the relative path in `base.json`, the name in `adapter_config.json`, the absolute path in `base.json`.

    Raises:
      UserError: neither file names a base.
    """
    config, recorded = read_config(directory), _read_base_file(directory)
    name = config.get("base_model_name_or_path")
    found: list[tuple[str, str | None]] = []
    for path in (recorded.get("path"), name, recorded.get("absolute")):
        if not isinstance(path, str) or not path:
            continue
        beside = directory / path  # an absolute path stays as it is
        if beside.is_dir():
            found.append((str(beside.resolve()), None))
        elif path == name:
            found.append((path, None if Path(path).is_dir() else config.get("revision")))
    if not found:
        raise UserError(f"{directory / CONFIG_FILE} names no base model; set base_model_name_or_path")
    return found


def base_digest(directory: AnyPath) -> str | None:
    """Return the digest that the base had when the adapter was written; None for an adapter of another tool."""
    return _read_base_file(directory).get("digest")


def settings_that_matter(directory: Path) -> str:
    """Return the adapter's configuration as one text without the location of the base: equal adapters, equal texts."""
    config = read_config(directory)
    ignored = {"base_model_name_or_path", "revision", "peft_version", "inference_mode"}
    return json.dumps({name: _ordered(config[name]) for name in sorted(config) if name not in ignored})


def read_config(directory: AnyPath) -> dict[str, Any]:
    """Read `adapter_config.json`.

    Raises:
      UserError: it cannot be read, or holds no JSON object.
    """
    return read_json(directory / CONFIG_FILE)


def _read_base_file(directory: AnyPath) -> dict[str, Any]:
    path = directory / BASE_FILE
    if not path.is_file():
        return {}
    content = read_json(path)
    if not all(isinstance(value, str) for value in content.values()):
        raise UserError(f"{path} cannot be read: expected texts under path and digest")
    return content


def _ordered(value: Any) -> Any:
    """Sort a list: peft writes sets in any order."""
    return sorted(value, key=str) if isinstance(value, list) else value
