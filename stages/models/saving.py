"""Owns writing model directories: whole or not at all, in the Hugging Face layout that `checkpoints` reads."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from stages.core import storage
from stages.core.errors import UserError, first_line
from stages.core.paths import StorePath
from stages.models import transfer
from stages.models.silence import quietly

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_directory(
    directory: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    write_more: Callable[[Path], None] | None = None,
    state: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a model directory atomically; one that was there is replaced.

    Args:
      directory: where it shall lie; parents are made.
      model: of one with an adapter on it, the adapter alone is written.
      write_more: called with the unfinished directory, to put more files into it (lineage, metrics,
        optimiser state).
      state: the weights by the model's own names, where it does not hold them whole, or not as they are to be written
        (an engine gathers its float32 masters); left out, the model's.

    Raises:
      UserError: the disk is full or the place is not writable; nothing is left half-written.
    """
    from safetensors import SafetensorError

    from stages.models import lora

    unfinished = transfer.building(directory)
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        if lora.is_adapted(model):
            lora.write_adapter(model, unfinished, state)
        else:
            with quietly():
                (_skeleton(model) if state else model).save_pretrained(unfinished, state_dict=state)
        tokenizer.save_pretrained(unfinished)
        if write_more:
            write_more(unfinished)
        replace_directory(unfinished, directory)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write {directory}: {first_line(error)}; make room or choose another place, then run this again"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """The same model in float32 and without weights, to describe those that are written in its place."""
    import torch

    config = copy.deepcopy(model.config)
    config.dtype = torch.float32
    with torch.device("meta"):
        skeleton = type(model)(config)
    skeleton.generation_config = model.generation_config
    return skeleton.float()


def replace_directory(finished: Path, directory: Path) -> None:
    """Flush `finished` to disk and give it the name `directory`; a directory of that name is moved aside, then removed.

    One in a store it is put into (`transfer.publish`).

    A crash leaves the old directory, the new one, or (between two renames) the old one as `.<name>.replaced`.
    """
    readable = finished.stat().st_mode & 0o666  # as the umask has it; safetensors files come out for the owner alone
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
