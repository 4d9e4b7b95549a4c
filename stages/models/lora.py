"""Plan low-rank adapters, and merge them into full weights.

`stages.models.adapters` describes an adapter's directory; `stages.models.loading` and `stages.models.saving` load and
write adapters; `stages.optimization.lora` trains them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from stages.core.errors import UserError
from stages.core.paths import AnyPath
from stages.models import adapters, checkpoints, loading, saving
from stages.models.adapters import Lora, LoraOptions


def plan(policy: Path | None, options: LoraOptions) -> Lora | None:
    """Decide which adapter to train on a policy: its own, a new one, or None (train all weights).

    Defaults: the values of the policy's own adapter; for a new one, alpha is twice the rank, and the targets are all
    linear layers except the output head.

    Args:
      policy: its directory; None for a policy made from scratch.

    Raises:
      UserError: the options contradict the policy's adapter; the policy has no such layers; peft is not installed.
    """
    if policy and adapters.is_adapter(policy):
        return _plan_to_continue(policy, options)
    if options.r is None:
        if options != LoraOptions():
            raise UserError(
                "--lora-alpha, --lora-target-modules and --merge need an adapter: pass --lora-r, or none of them"
            )
        return None
    if policy is None:
        raise UserError("--lora-r needs an existing model to adapt: pass --model, or omit --lora-r")
    adapters.require_peft()
    return Lora(options.r, options.alpha or 2.0 * options.r, _choose_targets(policy, options.targets))


def _plan_to_continue(policy: Path, options: LoraOptions) -> Lora:
    adapters.require_peft()
    own = adapters.read_lora(policy)
    wanted = Lora(options.r or own.r, options.alpha or own.alpha, tuple(sorted(options.targets)) or own.targets)
    if wanted != own:
        raise UserError(
            f"{policy} is an adapter of rank {own.r}, alpha {own.alpha:g} on {', '.join(own.targets)}: omit "
            "--lora-r, --lora-alpha and --lora-target-modules to continue it, or start another one from the "
            f"merged model (--merge writes it to {adapters.MERGED}/)"
        )
    return own


def _choose_targets(base: Path, targets: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the layers to adapt, sorted; by default every linear layer except the output head.

    Raises:
      UserError: the model has no linear layer of such a name.
    """
    model = _without_weights(base)
    head = model.get_output_embeddings()
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    if unknown := sorted({*targets} - linear):
        raise UserError(f"--lora-target-modules {' '.join(unknown)}: {base} has {', '.join(sorted(linear))}")
    return tuple(sorted(targets or linear))


def _without_weights(base: Path) -> Any:
    """Return the architecture of a model; no weights are allocated."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(loading.load_config(base), trust_remote_code=False)


def describe(adapter: Lora, base: Path) -> str:
    """Return a line for the user that names the adapted layers, and the experts that an adapter cannot change.

    transformers keeps the experts of most mixtures in one parameter [experts, rows, columns] for all of them, which is
    no linear layer.
    """
    line = (
        f"training an adapter of rank {adapter.r} on {', '.join(adapter.targets)}; the weights in {base} do not change"
    )
    fused = {
        f"{path.rpartition('.')[2]}.{name}"
        for path, module in _without_weights(base).named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and not isinstance(module, nn.Conv1d)
    }
    if not fused:
        return line
    return f"{line}; its fused experts ({', '.join(sorted(fused))}) are no linear layers: they are not adapted"


def write_merged(
    adapter: Path,
    out: AnyPath,
    write_more: Callable[[Path], None] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Merge an adapter into its base and write the full weights as a Hugging Face directory.

    Args:
      write_more: as in `saving.save_directory`.
      dtype: type of the weights; float32 loses nothing.

    Raises:
      UserError: as `loading.load_model` and `saving.save_directory`.
    """
    model = loading.load_model(adapter, torch.device("cpu"), dtype)
    saving.save_directory(out, model, loading.load_tokenizer(adapter), write_more)


def whole_directory(directory: Path, scratch: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Return a directory with the full weights of a model, for an engine that reads no adapters from disk.

    Args:
      directory: of full weights, or of an adapter.
      scratch: a directory of the caller; it keeps the merged weights of the last adapter.
      dtype: type of the weights that are written to `scratch`.

    Returns:
      `directory` itself for full weights; for an adapter, its `merged/` if that exists, else a merged copy in
      `scratch`, written now unless it is there.
    """
    if not adapters.is_adapter(directory):
        return directory
    merged, copy = directory / adapters.MERGED, scratch / f"merged-{checkpoints.digest(directory)}"
    if any(merged.glob("model*.safetensors")):
        return merged
    if not copy.is_dir():
        for older in scratch.glob("merged-*"):
            shutil.rmtree(older)
        write_merged(directory, copy, dtype=dtype)
    return copy
