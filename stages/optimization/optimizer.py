"""AdamW on the parameters of a module: the clipped step, and the state on disk by parameter name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stages.core.errors import UserError
from stages.models.guard import guarded

MOMENTS = ("exp_avg", "exp_avg_sq")
"""torch's names for the first and second moment."""


@dataclass(frozen=True)
class AdamWConfig:
    """AdamW's settings, without the learning rate, which each step gets. Vectors (biases, norms) are not decayed."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0


DEFAULT_ADAMW = AdamWConfig()


def make_adamw(
    module: nn.Module, config: AdamWConfig, kind: type[torch.optim.AdamW] = torch.optim.AdamW
) -> torch.optim.AdamW:
    """Create torch's AdamW, or a subclass of it, over the trainable parameters of a module."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return kind(groups, lr=0.0, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def save_state(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write an optimizer's state: `exp_avg.NAME`, `exp_avg_sq.NAME` and `step.NAME` of each parameter."""
    save_file({name: value.contiguous() for name, value in state.items()}, path)


def load_state(path: Path, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Read what `save_state` wrote, for a model with parameters of these names and shapes.

    Raises:
      UserError: the state belongs to another model, or the file is truncated or corrupt.
    """
    try:
        with guarded(path.name, path.parent):
            state = load_file(path)
    except UserError as error:
        raise UserError(f"{error}; pass --optimizer-state fresh to start over") from error
    for key, value in state.items():
        what, _, name = key.partition(".")
        if name not in shapes or (what != "step" and value.shape != shapes[name]):
            raise UserError(f"{path} belongs to another model ({name}); pass --optimizer-state fresh to start over")
    return state


class Optimizer:
    """AdamW on one module in this process."""

    def __init__(self, module: nn.Module, config: AdamWConfig) -> None:
        self._module = module
        self._max_grad_norm = config.max_grad_norm
        self._adamw = make_adamw(module, config)

    def step(self, learning_rate: float) -> float:
        """Clip the gradient, update the weights, clear the gradient. Return the gradient's norm before clipping.

        Raises:
          FloatingPointError: the norm is not finite; the weights are unchanged.
        """
        norm = float(nn.utils.clip_grad_norm_(self._module.parameters(), self._max_grad_norm))
        if not math.isfinite(norm):
            self.discard()
            raise FloatingPointError(f"the gradient's norm is {norm}")
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        self.discard()
        return norm

    def discard(self) -> None:
        """Clear the accumulated gradient."""
        self._adamw.zero_grad(set_to_none=True)

    def save(self, path: Path) -> None:
        """Write the state (`save_state`)."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self._module.named_parameters()}
        state = self._adamw.state.items()
        save_state(path, {f"{what}.{names[p]}": value for p, values in state for what, value in values.items()})

    def load(self, path: Path) -> None:
        """Continue from a saved state.

        Raises:
          UserError: as `load_state`.
        """
        parameters = dict(self._module.named_parameters())
        for key, value in load_state(path, {name: one.shape for name, one in parameters.items()}).items():
            what, name = key.split(".", 1)
            parameter = parameters[name]
            dtype = value.dtype if what == "step" else parameter.dtype
            self._adamw.state[parameter][what] = value.to(parameter.device, dtype)
