"""Low-rank adapters through peft: put on a model, trained, switched off, written, merged into the weights.

A model whose adapter is trained is the base's own class with peft's layers in the place of the adapted linear ones, so
an engine treats it as any model: its frozen parameters ask for no gradient, and those of the adapter are all that an
optimiser sees. The base is kept in the type of the products, the adapter in float32 (as whole weights are, and for the
same reason: see `stages.optimization.torch`). There is no dropout: the old log-probabilities are of the same function.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from stages.core.errors import UserError, first_line
from stages.models import adapters, checkpoints, saving, transfer
from stages.models.adapters import Asked, Lora
from stages.models.pruning import check_weights

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

    from stages.optimization.batches import MicroBatch
    from stages.optimization.head import Scored
    from stages.optimization.step import Engine

_NAME = "default"
_WRAPPED = "base_model.model."  # what peft's own wrapper puts before every name


def plan(policy: Path | None, asked: Asked) -> Lora | None:
    """The adapter that a call trains on a policy: the policy's own, gone on with; a new one; None: all weights.

    What is not said is, of the policy's own adapter, as it is; of a new one alpha is twice the rank, and all linear
    layers but the output head are adapted.

    Args:
      policy: its directory; None where it is made from scratch.

    Raises:
      UserError: another adapter is asked for than the policy is; no such layers; peft is not installed.
    """
    if policy and adapters.is_adapter(policy):
        return _plan_to_go_on(policy, asked)
    if asked.r is None:
        if asked != Asked():
            raise UserError(
                "--lora-alpha, --lora-target-modules and --merge are of an adapter: pass --lora-r, or none of them"
            )
        return None
    if policy is None:
        raise UserError("an adapter changes a model that is there: pass --model, or leave --lora-r out")
    require_peft()
    return Lora(asked.r, asked.alpha or 2.0 * asked.r, _check_targets(policy, asked.targets))


def _plan_to_go_on(policy: Path, asked: Asked) -> Lora:
    require_peft()
    there = adapters.read_lora(policy)
    wanted = Lora(asked.r or there.r, asked.alpha or there.alpha, tuple(sorted(asked.targets)) or there.targets)
    if wanted != there:
        raise UserError(
            f"{policy} is an adapter of rank {there.r}, alpha {there.alpha:g} on {', '.join(there.targets)}: leave "
            "--lora-r, --lora-alpha and --lora-target-modules out to go on with it, or start another one from the "
            f"whole model (--merge writes it to {adapters.MERGED}/)"
        )
    return there


def require_peft() -> None:
    """Raises UserError where peft is not installed."""
    if find_spec("peft") is None:
        raise UserError("adapters need the package peft, which is not installed: pip install 'spo-cli[lora]'")


def open_to_train(
    directory: Path, device: torch.device, compute: torch.dtype, lora: Lora | None = None, seed: int = 0
) -> PreTrainedModel:
    """A model as an optimisation engine takes it: float32 masters, or an adapter on a frozen base.

    A new adapter changes nothing yet: B is zero, and A drawn from the seed.

    Args:
      directory: of a whole model, or of an adapter, which is gone on with.
      compute: type of the matrix products, in which a frozen base is kept.
      lora: the adapter for a whole model; None: all its weights are trained.

    Raises:
      UserError: as `checkpoints.load_model`; the adapter changes the embedding or the output head.
    """
    if adapters.is_adapter(directory):
        model = cast("PreTrainedModel", _load(directory, device, compute, trainable=True).get_base_model())
    elif lora is None:
        return checkpoints.load_model(directory, device, torch.float32)
    else:
        model = _attach(directory, device, compute, lora, seed)
    for what, module in {
        "embedding": model.get_input_embeddings(),
        "output head": model.get_output_embeddings(),
    }.items():
        if any(parameter.requires_grad for parameter in cast("nn.Module", module).parameters()):
            raise UserError(f"the adapter changes the {what}; expected one of linear layers of the decoder alone")
    return model


def load_merged(directory: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The whole model that an adapter's directory stands for, merged in memory, in evaluation mode.

    The sum W + α/r · B A is taken in float32 and rounded to the type once.
    """
    merged = cast("Any", _load(directory, device, dtype, trainable=False)).merge_and_unload()
    return merged.requires_grad_(True).eval()


def is_adapted(model: nn.Module) -> bool:
    """Whether a model has an adapter on it."""
    return bool(getattr(model, "peft_config", None))


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """Within it a model is its base."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


class BaseOf:
    """The base of an adapted policy, to score with: the same weights in memory, the adapter switched off."""

    def __init__(self, engine: Engine, model: nn.Module) -> None:
        self._engine, self._model = engine, model

    def score(self, batch: MicroBatch, temperature: float) -> Scored:
        """See `optimisation.Engine.score`; without gradient."""
        with torch.no_grad(), without_adapter(self._model):
            return self._engine.score(batch, temperature)


def write_adapter(model: PreTrainedModel, directory: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Put an adapter's files (see `stages.models.adapters`) into a directory that is there.

    Args:
      model: with the adapter on it.
      state: the adapter's parameters by the model's own names, where the model does not hold them whole (an engine
        gathers them from its ranks); left out, the model's.
    """
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    config = _config(model)
    base = Path(str(config.base_model_name_or_path))
    told = {name: sorted(value) if isinstance(value, set) else value for name, value in config.to_dict().items()}
    (directory / adapters.CONFIG_FILE).write_text(json.dumps(told | {"inference_mode": True}, indent=2, sort_keys=True))
    found = get_peft_model_state_dict(model, dict(state) if state else None, _NAME, save_embedding_layers=False)
    weights = {_WRAPPED + name: value.detach().float().contiguous().cpu() for name, value in found.items()}
    save_file(weights, directory / adapters.WEIGHTS[0], metadata={"format": "pt"})
    if base.is_dir():
        place = Path(os.path.relpath(base, directory.resolve())).as_posix()
        told = {"path": place, "digest": checkpoints.digest(base)}
        (directory / adapters.BASE_FILE).write_text(json.dumps(told) + "\n")


def write_merged(
    adapter: Path,
    out: Path,
    write_more: Callable[[Path], None] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the whole model that an adapter stands for as a Hugging Face directory.

    Args:
      write_more: as `saving.save_directory` takes it.
      dtype: of the weights; in float32 nothing is lost.

    Raises:
      UserError: as `checkpoints.load_model` and `saving.save_directory`.
    """
    model = load_merged(adapter, torch.device("cpu"), dtype)
    saving.save_directory(out, model, checkpoints.load_tokenizer(adapter), write_more)


def whole_directory(directory: Path, scratch: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A directory of whole weights that says what a model says, for an engine that reads no adapters.

    Args:
      scratch: a directory of the caller's, where the last adapter is kept merged.
      dtype: of the weights that are written there.

    Returns:
      The model's own; of an adapter `merged/` where that was written, else one in `scratch`, written now.
    """
    if not adapters.is_adapter(directory):
        return directory
    beside, written = directory / adapters.MERGED, scratch / f"merged-{checkpoints.digest(directory)}"
    if any(beside.glob("model*.safetensors")):
        return beside
    if not written.is_dir():
        for older in scratch.glob("merged-*"):
            shutil.rmtree(older)
        write_merged(directory, written, dtype=dtype)
    return written


def _attach(directory: Path, device: torch.device, compute: torch.dtype, lora: Lora, seed: int) -> PreTrainedModel:
    from peft import LoraConfig, get_peft_model

    model = checkpoints.load_model(directory, device, compute)
    name, revision = _public_name(directory)
    model.name_or_path = name  # from which peft takes the base's name
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
        target_modules=list(lora.targets),
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
        revision=revision,
    )
    with torch.random.fork_rng(devices=[]):  # peft draws on the CPU
        torch.manual_seed(seed)
        get_peft_model(model, config, adapter_name=_NAME)
    return model.eval()


def _load(directory: Path, device: torch.device, dtype: torch.dtype, *, trainable: bool) -> PeftModel:
    """The base with a saved adapter on it, in peft's wrapper."""
    require_peft()
    from peft import PeftModel
    from safetensors import SafetensorError

    check_weights(directory)
    base = checkpoints.base_of(directory)
    model = checkpoints.load_model(base, device, dtype)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")  # they would stay random
            wrapped = PeftModel.from_pretrained(model, str(directory), adapter_name=_NAME, is_trainable=trainable)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, UserWarning) as error:
        raise UserError(f"the adapter in {directory} cannot be put on {base}: {first_line(error)}") from error
    config = _config(model)
    config.base_model_name_or_path, config.revision = _public_name(base)
    return cast("PeftModel", wrapped.eval())


def _config(model: nn.Module) -> LoraConfig:
    return cast("Any", model).peft_config[_NAME]


def _check_targets(base: Path, targets: tuple[str, ...]) -> tuple[str, ...]:
    """The layers to adapt by name, sorted; none asked for: every linear layer but the output head.

    Raises:
      UserError: the model has no linear layer of such a name.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(checkpoints.load_config(base), trust_remote_code=False)
    head = model.get_output_embeddings()
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    if unknown := sorted({*targets} - linear):
        raise UserError(f"--lora-target-modules {' '.join(unknown)}: {base} has {', '.join(sorted(linear))}")
    return tuple(sorted(targets or linear))


def _public_name(directory: Path) -> tuple[str, str | None]:
    """How others find a model: a local directory by its path, a copy of one in a store by its place there, one in the
    hub's cache by name and revision."""
    place = transfer.origin(directory.resolve())
    repository = place.parent.parent.name
    if place.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/"), place.name
    return str(place), None
