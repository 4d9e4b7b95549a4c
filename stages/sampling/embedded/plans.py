"""Find the plan of a model from its shapes alone, without its weights."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from stages.models import checkpoints, loading
from stages.models.presets import make_model
from stages.sampling.embedded.forward import find_products
from stages.sampling.embedded.invariance import Plan
from stages.sampling.embedded.probe import find_plan


def preset_plan(preset: str) -> Plan:
    """Return the plan of a preset's products on this CPU in float32."""
    model, _ = make_model(preset, 0)
    return find_plan(find_products(model), torch.get_num_threads())


def directory_plan(model: str) -> Plan:
    """Return the plan of the products of a model directory on this CPU in float32.

    Raises:
      UserError: there is no such model, or its configuration cannot be read.
    """
    config = loading.load_config(checkpoints.resolve(model))
    return find_plan(find_products(_without_weights(config)), torch.get_num_threads())


def _without_weights(config: PreTrainedConfig) -> torch.nn.Module:
    """Return the modules of a model on the meta device, which holds shapes and no numbers."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
