"""Read and write the float32 masters and AdamW moments of a policy that DeepSpeed distributes over ranks.

At stage 0 they are the parameters and the optimizer's own state; from stage 1 on, each rank holds slices of flattened
tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stages.optimization.optimizer import MOMENTS
from stages.optimization.ranks import Ranks

_FLAT = ("single_partition_of_fp32_groups", "fp32_groups_flat_partition", "fp32_partitioned_groups_flat")
"""Attributes of DeepSpeed's optimizers (one per kind of optimizer) with this rank's slices of the masters."""


class ZeroState:
    """Masters and moments of the trainable parameters of a module. All ranks must call the same methods.

    Attributes:
      trained: the parameters by name.
    """

    def __init__(self, engine: Any, trained: Mapping[str, nn.Parameter], stage: int, ranks: Ranks) -> None:
        """Take over a newly opened engine.

        Args:
          engine: DeepSpeed's engine. From stage 1 on its optimizer would create its moments in the first step; they are
            created here, with value 0, so that saved ones can be restored before it.
          trained: the trainable parameters by name.
          stage: ZeRO stage.
        """
        self.trained = trained
        self._optimizer, self._stage, self._ranks = engine.optimizer, stage, ranks
        self._adamw: torch.optim.Optimizer = engine.optimizer.optimizer if stage else engine.optimizer
        if stage:
            self._make_moments()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore a saved optimizer's state (`optimizer.save_state`), which every rank has read completely."""
        steps = [int(value) for key, value in state.items() if key.startswith("step.")]
        for name, parameter in self.trained.items():
            for what in MOMENTS:
                value = state.get(f"{what}.{name}")
                if value is not None and self._stage == 0:
                    kept = self._adamw.state[parameter]
                    kept[what] = value.to(parameter.device, parameter.dtype)
                    kept["step"] = state[f"step.{name}"].to(parameter.device)
                elif value is not None:
                    self.put(parameter, value, what)
        if steps and self._stage:
            for kept in self._adamw.state.values():
                kept["step"].fill_(max(steps))

    def put(self, parameter: nn.Parameter, value: Tensor, what: str | None = None) -> None:
        """Set a parameter's master (`what` is None) or moment from a full tensor; stages 1 to 3."""
        from deepspeed import utils

        named = () if what is None else (what,)
        if self._stage < 3:
            put = utils.safe_set_full_fp32_param if what is None else utils.safe_set_full_optimizer_state
            put(parameter, value, *named)
            return
        # Stage 3 partitions each parameter. DeepSpeed's setters for full tensors read beyond the end of a tensor whose
        # size is not a multiple of the number of ranks, so this rank's slice is cut here, padded, and set locally.
        partitioned: Any = parameter
        size = partitioned.partition_numel()
        first = size * self._optimizer._get_param_partition_rank(parameter)
        own = value.flatten()[first : first + size]
        put = utils.safe_set_local_fp32_param if what is None else utils.safe_set_local_optimizer_state
        put(parameter, nn.functional.pad(own, (0, size - own.numel())), *named)

    def gather(self, what: str | None = None) -> dict[str, Tensor]:
        """Return the full masters (`what` is None) or moments by parameter name, on the CPU of rank 0; {} on others."""
        from deepspeed import utils

        found = {}
        for name, parameter in self.trained.items():
            if self._stage == 0:
                full = parameter.detach() if what is None else self._adamw.state[parameter].get(what)
            elif what is None:
                full = utils.safe_get_full_fp32_param(parameter)
            else:
                full = utils.safe_get_full_optimizer_state(parameter, what)
            if self._ranks.rank == 0 and full is not None:
                found[name] = full.to("cpu", copy=True)
        return found

    def steps(self) -> float:
        """Return the number of steps that the optimizer has taken; the same on every rank."""
        taken = max((float(kept["step"]) for kept in self._adamw.state.values()), default=0.0)
        return max(self._ranks.gather(taken))

    def _make_moments(self) -> None:
        masters = next(getattr(self._optimizer, name) for name in _FLAT if hasattr(self._optimizer, name))
        for flat in masters:
            zeros = {name: torch.zeros_like(flat, requires_grad=False) for name in MOMENTS}
            self._adamw.state[flat] = {"step": torch.zeros((), device=flat.device), **zeros}
        if self._stage < 3:
            self._optimizer._lazy_init_hp_params_optimizer_state()
