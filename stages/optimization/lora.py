"""Put low-rank adapters on models for training, and switch them off to score the base (LoRA, arXiv 2106.09685).

A model with an adapter keeps the class of its base; peft's layers replace the adapted linear ones. An engine therefore
treats it like any model: frozen parameters need no gradient, so the optimizer sees the adapter alone. The base is kept
in the type of the matrix products; the adapter is kept in float32, as full weights are and for the same reason (see
`stages.optimization.torch`). There is no dropout: the old log-probabilities come from the same function.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from stages.core.errors import UserError
from stages.models import adapters, checkpoints, loading
from stages.models.adapters import Lora
from stages.optimization.batches import MicroBatch
from stages.optimization.head import Scored
from stages.optimization.step import Scorer


def open_to_train(
    directory: Path, device: torch.device, compute: torch.dtype, lora: Lora | None = None, seed: int = 0
) -> PreTrainedModel:
    """Load a model for an optimization engine: float32 masters, or an adapter on a frozen base.

    A new adapter does not change the model's outputs: B is zero, and A is drawn from the seed.

    Args:
      directory: of full weights, or of an adapter, whose training continues.
      compute: type of the matrix products; a frozen base is kept in it.
      lora: a new adapter for full weights; None: train all weights.

    Raises:
      UserError: as `loading.load_model`; the adapter changes the embedding or the output head.
    """
    if adapters.is_adapter(directory):
        wrapped = loading.load_adapted(directory, device, compute, trainable=True)
        model = cast("PreTrainedModel", wrapped.get_base_model())
    elif lora is None:
        return loading.load_model(directory, device, torch.float32)
    else:
        model = _attach(directory, device, compute, lora, seed)
    # The masked head multiplies by the head's own weight matrix (`optimization.head`) and would skip peft's layer.
    for what, module in {
        "embedding": model.get_input_embeddings(),
        "output head": model.get_output_embeddings(),
    }.items():
        if any(parameter.requires_grad for parameter in cast("nn.Module", module).parameters()):
            raise UserError(f"the adapter changes the {what}; expected an adapter of the decoder's linear layers alone")
    return model


def _attach(directory: Path, device: torch.device, compute: torch.dtype, lora: Lora, seed: int) -> PreTrainedModel:
    from peft import LoraConfig, get_peft_model

    model = loading.load_model(directory, device, compute)
    name, revision = checkpoints.public_name(directory)
    model.name_or_path = name  # peft copies the base's name from here
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
        target_modules=list(lora.targets),
        lora_dropout=0.0,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2 keeps weights transposed
        task_type="CAUSAL_LM",
        revision=revision,
    )
    with torch.random.fork_rng(devices=[]):  # peft draws A on the CPU
        torch.manual_seed(seed)
        get_peft_model(model, config, adapter_name=adapters.PEFT_NAME)
    return model.eval()


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """Switch the adapter on a model off inside the block, so that the model computes what its base computes."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


class BaseScorer:
    """Scorer for the base of an adapted policy: the weights in memory, with the adapter switched off."""

    def __init__(self, policy: Scorer, model: nn.Module) -> None:
        """Wrap the scorer of the adapted policy and its model."""
        self._policy, self._model = policy, model

    def score(self, batch: MicroBatch, temperature: float) -> Scored:
        """Score like `step.Scorer.score`, without gradient."""
        with torch.no_grad(), without_adapter(self._model):
            return self._policy.score(batch, temperature)
