"""Turn every failure to load a file of a model directory into one line, and check that a loaded model computes.

The files come from anywhere: torn, edited by hand, made for another version. What the libraries raise for them has no
common class, so everything is caught here, and only here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.core.errors import Interrupted, SpoError, UserError
from stages.models.silence import silenced_transformers

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")
"""Entries that are small positive numbers, where a model has them."""
_MOST = {"num_hidden_layers": 10_000}
"""Larger values would keep the library busy for hours before the weights fail to fit."""
_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings"),
)
"""Entries of a configuration that are whole numbers from 1, where a model has them."""


@contextmanager
def guarded(what: str, directory: Path) -> Iterator[None]:
    """Convert every error inside the block to a UserError, silence warnings and anything that libraries print.

    Args:
      what: what the block loads, for the message: "tokenizer".

    Raises:
      UserError: `the WHAT in DIRECTORY cannot be loaded: REASON`.
    """
    try:
        with silenced_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (SpoError, Interrupted, MemoryError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # a panic of tokenizers (pyo3) derives from BaseException only
        reason = f"{' '.join(str(error).split()):.300}"
        named = reason if reason.startswith(type(error).__name__) else f"{type(error).__name__}: {reason}"
        raise UserError(f"the {what} in {directory} cannot be loaded: {named}") from error


def check_sizes(config: PretrainedConfig, directory: Path) -> None:
    """Check that the sizes in a configuration are possible.

    Raises:
      UserError: a size is not a whole number from 1.
    """
    text = config.get_text_config(decoder=True)
    # As written in the file: an attribute that differs between layers (Gemma 4) cannot be read for the whole model.
    fields, own_names = text.to_dict(), text.attribute_map
    for name in _SIZES:
        value = fields.get(own_names.get(name, name))
        most = _MOST.get(name) or 2**31
        values = value if isinstance(value, list) else [value]  # some families have a size for each layer
        if any(one is not None and not (type(one) is int and 1 <= int(one) <= most) for one in values):
            raise UserError(
                f"config.json in {directory} has {name} {value!r:.60}; expected a whole number from 1 to {most}"
            )
    for name in _EPSILONS:
        value = fields.get(own_names.get(name, name))
        if value is not None and not (isinstance(value, int | float) and 0 <= value < 1):
            raise UserError(f"config.json in {directory} has {name} {value!r:.60}; expected a number from 0, below 1")


def check_tensors(missing: Iterable[str], unexpected: Iterable[str], directory: Path) -> None:
    """Check that the weights match the configuration.

    Raises:
      UserError: tensors are missing (transformers would fill them with random numbers), or left over (it would ignore
        them, so a configuration with one layer fewer would load another model).
    """
    if absent := sorted(missing):
        raise UserError(f"the weights in {directory} lack {len(absent)} tensors, the first is {absent[0]}")
    if surplus := sorted(unexpected):
        raise UserError(
            f"the weights in {directory} have {len(surplus)} tensors that the model of its config.json does not have, "
            f"the first is {surplus[0]}"
        )


def check_computes(model: Any, directory: Path) -> None:
    """Compute two tokens: impossible settings fail here, not in the middle of a stage.

    Raises:
      UserError: the result has a NaN.
      Exception: whatever the model raises; call this inside `guarded`.
    """
    import torch

    tokens = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    with torch.inference_mode():
        result: torch.Tensor = model(input_ids=tokens, use_cache=False)[0]
    if result.isnan().any():
        raise UserError(f"the model in {directory} computes NaN: its weights or its config.json are damaged")
