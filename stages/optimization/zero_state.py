"""Owns the float32 masters and moments of a policy that DeepSpeed shares out: where each rank has its share of them.

At stage 0 they are the parameters and the optimiser's own state; from stage 1 on, slices of flat tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stages.optimization.optimizer import MOMENTS
from stages.optimization.ranks import Ranks

_FLAT = ("single_partition_of_fp32_groups", "fp32_groups_flat_partition", "fp32_partitioned_groups_flat")
"""Names that DeepSpeed's optimisers have for this rank's slices of the masters."""


class ZeroState:
    """Masters and moments of what is trained of a module; all ranks call the same methods.

    Attributes:
      trained: parameters by name.
    """

    def __init__(self, engine: Any, trained: Mapping[str, nn.Parameter], stage: int, ranks: Ranks) -> None:
        """
        Args:
          engine: DeepSpeed's, just opened: from stage 1 on its optimiser gets its moments here, which are 0 until
            others are put there, as they would be in the first step.
        """
        self.trained = trained
        self._optimizer, self._stage, self._ranks = engine.optimizer, stage, ranks
        self._adamw: torch.optim.Optimizer = engine.optimizer.optimizer if stage else engine.optimizer
        if stage:
            self._make_moments()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put a saved optimiser's state (`adam.save_state`), whole on every rank, where their shares of it belong."""
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
        """A whole tensor as a parameter's master (None) or moment, from stage 1 on."""
        from deepspeed import utils

        named = () if what is None else (what,)
        if self._stage < 3:
            put = utils.safe_set_full_fp32_param if what is None else utils.safe_set_full_optimizer_state
            put(parameter, value, *named)
            return
        # Not by the same functions: where a size is no multiple of the ranks, they look for the last share beyond it.
        share: Any = parameter
        size = share.partition_numel()
        first = size * self._optimizer._get_param_partition_rank(parameter)
        mine = value.flatten()[first : first + size]
        put = utils.safe_set_local_fp32_param if what is None else utils.safe_set_local_optimizer_state
        put(parameter, nn.functional.pad(mine, (0, size - mine.numel())), *named)

    def gather(self, what: str | None = None) -> dict[str, Tensor]:
        """On rank 0, masters (None) or moments of all that is trained, whole and on the CPU; else nothing."""
        from deepspeed import utils

        found = {}
        for name, parameter in self.trained.items():
            if self._stage == 0:
                whole = parameter.detach() if what is None else self._adamw.state[parameter].get(what)
            elif what is None:
                whole = utils.safe_get_full_fp32_param(parameter)
            else:
                whole = utils.safe_get_full_optimizer_state(parameter, what)
            if self._ranks.rank == 0 and whole is not None:
                found[name] = whole.to("cpu", copy=True)
        return found

    def steps(self) -> float:
        """How many steps the optimiser has taken; the same on every rank."""
        taken = max((float(kept["step"]) for kept in self._adamw.state.values()), default=0.0)
        return max(self._ranks.gather(taken))

    def _make_moments(self) -> None:
        masters = next(getattr(self._optimizer, name) for name in _FLAT if hasattr(self._optimizer, name))
        for flat in masters:
            zeros = {name: torch.zeros_like(flat, requires_grad=False) for name in MOMENTS}
            self._adamw.state[flat] = {"step": torch.zeros((), device=flat.device), **zeros}
        if self._stage < 3:
            self._optimizer._lazy_init_hp_params_optimizer_state()
