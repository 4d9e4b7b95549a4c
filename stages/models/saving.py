"""Write model directories atomically, in the Hugging Face layout that `stages.models.loading` reads."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from stages.core import storage
from stages.core.errors import UserError, first_line
from stages.core.paths import AnyPath
from stages.core.store import StorePath
from stages.models import adapters, checkpoints, transfer
from stages.models.silence import silenced_transformers

GENERATION_FILE = "generation_config.json"
_PROCESSORS = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "image_processor_config.json",
    "feature_extractor_config.json",
)
"""Files of multimodal models that transformers' models and tokenizers do not write."""
_PEFT_PREFIX = "base_model.model."  # peft's wrapper puts it before every name in its files


def save_directory(
    directory: AnyPath,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    write_more: Callable[[Path], None] | None = None,
    state: dict[str, Tensor] | None = None,
) -> None:
    """Write a model directory atomically; an existing one is replaced.

    Args:
      directory: the target; missing parents are created.
      model: if it has an adapter on it, only the adapter is written.
      write_more: called with the unfinished directory to write further files (lineage, metrics, the optimizer's state).
      state: weights by the model's own names, for a model that does not hold the full weights to be written (an engine
        gathers its float32 masters). Default: the model's weights.

    Raises:
      UserError: the disk is full, or the directory is not writable; no partial output is left.
    """
    unfinished = transfer.building(directory)
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        if adapters.is_adapted(model):
            write_adapter(model, unfinished, state)
        else:
            with silenced_transformers(), _accepted_settings(model):
                (_skeleton(model) if state else model).save_pretrained(unfinished, state_dict=state)
        _write_companions(unfinished, model, tokenizer)
        if write_more:
            write_more(unfinished)
        replace_directory(unfinished, directory)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write {directory}: {first_line(error)}; free disk space or choose another directory, then rerun"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def check_saving(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Try to write everything but the weights, so that no work is lost to a file that cannot be written.

    Raises:
      UserError: transformers refuses to write the model's configuration or its tokenizer.
    """
    with tempfile.TemporaryDirectory() as scratch, silenced_transformers():
        try:
            model.config.save_pretrained(scratch)
            _write_companions(Path(scratch), model, tokenizer)
        except Exception as error:  # transformers and tokenizers raise many classes for odd settings
            raise UserError(
                f"the {model.config.model_type} model could not be written after training: {first_line(error)}; "
                f"correct its configuration in {model.name_or_path}"
            ) from error


def _write_companions(directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the files beside the weights: tokenizer, generation settings, processors of images and sound."""
    _save_tokenizer(tokenizer, directory)
    settings = getattr(model, "generation_config", None)  # a backbone without a head has none
    if settings is not None and not adapters.is_adapted(model) and model.can_generate():
        # Not `save_pretrained`: it refuses settings that it loads, such as a temperature without do_sample.
        settings.to_json_file(directory / GENERATION_FILE)
    source = Path(str(model.name_or_path))
    for name in _PROCESSORS:
        if (source / name).is_file() and not (directory / name).exists():
            shutil.copyfile(source / name, directory / name)


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write a tokenizer; native code of the tokenizers library has no class of its own for errors of the disk."""
    try:
        tokenizer.save_pretrained(directory)
    except Exception as error:
        if "(os error " not in str(error):
            raise
        raise OSError(first_line(error)) from error


@contextmanager
def _accepted_settings(model: PreTrainedModel) -> Iterator[None]:
    """Give a model settings that transformers saves inside the block; `_write_companions` writes its own."""
    own = getattr(model, "generation_config", None)
    if own is None:
        yield
        return
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def write_adapter(model: PreTrainedModel, directory: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write an adapter's files (see `stages.models.adapters`) into an existing directory.

    Args:
      model: a model with the adapter on it.
      state: the adapter's parameters by the model's own names, for a model that does not hold the full parameters (an
        engine gathers them from its ranks). Default: the model's parameters.
    """
    from peft.utils import get_peft_model_state_dict

    config = adapters.peft_config(model)
    base = Path(str(config.base_model_name_or_path))
    settings = {name: sorted(value) if isinstance(value, set) else value for name, value in config.to_dict().items()}
    settings["inference_mode"] = True  # other tools load it frozen unless they ask for training
    relative = Path(os.path.relpath(base, directory.resolve())).as_posix() if base.is_dir() else None
    if relative:  # base and adapter may move together; a name on the hub stays
        settings["base_model_name_or_path"] = relative
    storage.write_atomically(directory / adapters.CONFIG_FILE, json.dumps(settings, indent=2, sort_keys=True).encode())
    found = get_peft_model_state_dict(
        model, dict(state) if state else None, adapters.PEFT_NAME, save_embedding_layers=False
    )
    weights = {_PEFT_PREFIX + name: value.detach().float().contiguous().cpu() for name, value in found.items()}
    save_file(weights, directory / adapters.WEIGHTS[0], metadata={"format": "pt"})
    if relative:
        content = {"path": relative, "absolute": str(base.resolve()), "digest": checkpoints.digest(base)}
        storage.write_atomically(directory / adapters.BASE_FILE, f"{json.dumps(content)}\n".encode())


def _skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """Return the same architecture in float32 without weights, to write a configuration that fits the given state."""
    config = copy.deepcopy(model.config)
    config.dtype = torch.float32
    with torch.device("meta"):
        skeleton = type(model)(config)
    skeleton.generation_config = cast("Any", model.generation_config)
    return skeleton.float()


def replace_directory(finished: Path, directory: AnyPath) -> None:
    """Flush `finished` to disk and rename it to `directory`; upload it if `directory` is in an object store.

    An existing directory is moved aside, then removed. A crash leaves the old directory, the new one, or (between two
    renames) the old one as `.<name>.replaced`.
    """
    # safetensors creates files with mode 600; give them the mode that the umask asks for.
    readable = finished.stat().st_mode & 0o666
    for path in [*finished.rglob("*"), finished]:
        if path.is_file():
            path.chmod(readable)
        storage.fsync(path)
    if isinstance(directory, StorePath):
        transfer.publish(finished, directory)
        return
    aside = directory.with_name(f".{directory.name}.replaced")
    shutil.rmtree(aside, ignore_errors=True)
    if directory.exists():
        directory.rename(aside)
    finished.rename(directory)
    storage.fsync(directory.parent)
    shutil.rmtree(aside, ignore_errors=True)
