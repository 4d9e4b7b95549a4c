"""The optimisation engine of many ranks: DeepSpeed shares a policy out over them (ZeRO, arXiv 1910.02054).

A policy is opened as `stages.optimization.torch` opens it, whole and on the CPU of every rank, looked at there, and then
shared out. What is scored and how is the same function; DeepSpeed runs it, reduces gradients and steps torch's AdamW.

Weights are float32 masters here too: at stage 0 the parameters themselves (bfloat16 products run under autocast), from
stage 1 on a copy in the optimiser where the parameters are bfloat16. A saved directory is what the torch engine writes:
masters and the optimiser's state by parameter name, gathered on rank 0. So either engine, on any number of ranks and at
any stage, goes on where another has stopped.

DeepSpeed clips as torch does, and leaves a step out whose gradient is not finite.
"""

from __future__ import annotations

import contextlib
import gc
import io
import math
import os
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from stages.core.errors import UserError, first_line
from stages.models import devices, saving
from stages.models.checkpoints import OPTIMIZER_FILE
from stages.optimization import lora
from stages.optimization.batches import MicroBatch
from stages.optimization.head import Scored
from stages.optimization.optimizer import MOMENTS, AdamWConfig, load_state, make_adamw, save_state
from stages.optimization.ranks import Ranks
from stages.optimization.torch import TorchEngine
from stages.optimization.zero import DeepSpeedSettings
from stages.optimization.zero_state import ZeroState

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from stages.models.adapters import Lora


class DeepSpeedEngine:
    """A causal language model over many ranks; see `optimisation.Engine`. All ranks call the same methods."""

    def __init__(
        self,
        policy: TorchEngine,
        adam: AdamWConfig,
        zero: DeepSpeedSettings,
        ranks: Ranks,
        device: torch.device,
        state: Path | None = None,
    ) -> None:
        """LossAndMetrics a policy out.

        Args:
          policy: on the CPU, the same on every rank.
          device: this rank's.
          state: an optimiser's state to continue.

        Raises:
          UserError: the state is of another model, or torn; DeepSpeed does not take the configuration.
        """
        deepspeed = _import(device)
        self.model, self.context_length, self.vocabulary = policy.model, policy.context_length, policy.vocabulary
        self._ranks = ranks
        trained = {name: one for name, one in self.model.named_parameters() if one.requires_grad}
        moments = load_state(state, {name: one.shape for name, one in trained.items()}) if state else {}
        masters = {name: one.data for name, one in trained.items()}
        settings = zero.settings(bfloat16=policy.compute == torch.bfloat16, max_grad_norm=adam.max_grad_norm)
        ranks.gather(None)  # all have read it; from here on they work together
        self._engine = _initialise(deepspeed, _Scoring(policy), adam, settings, zero.path)
        self._state = ZeroState(self._engine, trained, zero.stage, ranks)
        if "bf16" in settings:
            policy.mixed = False
            for name, parameter in trained.items():
                self._state.put(parameter, masters[name])
        self._state.restore(moments)

    def score(self, batch: MicroBatch, temperature: float) -> Scored:
        """See `optimisation.Engine.score`."""
        return Scored(*self._engine(batch, temperature))

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        """See `optimisation.Engine.backward`; DeepSpeed takes the mean over ranks."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self._ranks.size)

    def step(self, learning_rate: float) -> float:
        """See `optimisation.Engine.step`."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient's norm is {norm}")
        return norm

    def discard(self) -> None:
        """See `optimisation.Engine.discard`; made infinite, the gradient is what DeepSpeed itself forgets."""
        token = np.zeros((1, 1), np.int64)
        self.backward(self.score(MicroBatch(token, token[0], token[0]), 1.0).logprobs.sum() * math.inf)
        self._engine.step()

    def save(self, directory: Path, tokenizer: PreTrainedTokenizerBase, write_more: Callable[[Path], None]) -> None:
        """See `optimisation.Engine.save`; rank 0 writes what all gather."""
        weights, state = self._state.gather(), dict[str, Tensor]()
        if steps := self._state.steps():
            moments = {what: self._state.gather(what) for what in MOMENTS}
            state = {f"{what}.{name}": whole for what, of_all in moments.items() for name, whole in of_all.items()}
            state |= {f"step.{name}": torch.tensor(steps) for name in moments[MOMENTS[0]]}

        def write_rest(unfinished: Path) -> None:
            save_state(unfinished / OPTIMIZER_FILE, state)
            write_more(unfinished)

        parameters = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        buffers = {name: one for name, one in self.model.state_dict().items() if name not in parameters}
        self._ranks.broadcast_from_main(
            lambda: saving.save_directory(directory, self.model, tokenizer, write_rest, weights | buffers)
        )

    def close(self) -> None:
        """Give the memory back."""
        self._engine.destroy()
        del self._engine, self._state
        gc.collect()  # its hooks and modules hold one another
        self._ranks.gather(None)


def open_engine(
    directory: Path,
    adam: AdamWConfig,
    zero: DeepSpeedSettings,
    ranks: Ranks,
    device: torch.device,
    *,
    check: Callable[[TorchEngine], None],
    dtype: str = "auto",
    gradient_checkpointing: bool = False,
    head_chunk: int | None = None,
    continue_optimizer: bool = False,
    adapter: Lora | None = None,
    seed: int = 0,
) -> DeepSpeedEngine:
    """As `stages.optimization.torch.open_engine`, on many ranks; each reads the whole model first, into its host's memory.

    Args:
      device: this rank's.
      check: looks at the policy before it is shared out, and may refuse it.

    Raises:
      UserError: as there, and as `DeepSpeedEngine` and `check`.
    """
    if zero.bfloat16 is not None:
        dtype = "bfloat16" if zero.bfloat16 else "float32"
    compute = devices.pick_dtype(dtype, device)
    policy = TorchEngine(
        lora.open_to_train(directory, torch.device("cpu"), compute, adapter, seed),
        adam,
        compute=compute,
        gradient_checkpointing=gradient_checkpointing,
        head_chunk=head_chunk,
    )
    check(policy)
    state = directory / OPTIMIZER_FILE
    return DeepSpeedEngine(policy, adam, zero, ranks, device, state if continue_optimizer and state.is_file() else None)


class _Scoring(nn.Module):
    """What DeepSpeed runs: a pass through the decoder and the masked head."""

    def __init__(self, policy: TorchEngine) -> None:
        super().__init__()
        self.model, self._score = policy.model, policy.score

    def forward(self, batch: MicroBatch, temperature: float) -> tuple[Tensor, Tensor]:
        return tuple(self._score(batch, temperature))  # pyright: ignore[reportReturnType]


class _GuardedAdamW(torch.optim.AdamW):
    """AdamW that clips, and stays where it is where the gradient is not finite: from stage 1 on DeepSpeed does so."""

    max_grad_norm = math.inf
    _global_grad_norm = 0.0  # where DeepSpeed looks for it

    def step(self, closure: None = None) -> None:
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self._global_grad_norm = float(nn.utils.clip_grad_norm_(parameters, self.max_grad_norm))
        if math.isfinite(self._global_grad_norm):
            super().step(closure)


def _import(device: torch.device) -> Any:
    """DeepSpeed for a device. On a CPU it would compile an operation that only its inference uses: it must not."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    if device.index is not None:
        os.environ["LOCAL_RANK"] = str(device.index)  # which device is this rank's
        torch.cuda.set_device(device)
    os.environ.setdefault("LOCAL_RANK", "0")
    import deepspeed

    deepspeed.utils.logger.setLevel("ERROR")  # it warns of steps that are left out, which is told otherwise
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    if device.type == "cpu":
        cast("Any", deepspeed.ops).__compatible_ops__ = defaultdict(bool)
    return deepspeed


def _initialise(
    deepspeed: Any, module: _Scoring, adam: AdamWConfig, settings: dict[str, Any], path: Path | None
) -> Any:
    head = cast("nn.Module", module.model.get_output_embeddings())
    if settings["zero_optimization"]["stage"] == 3:  # the head is used without being called
        for parameter in head.parameters(recurse=False):
            deepspeed.zero.register_external_parameter(module, parameter)
    guarded = settings["zero_optimization"]["stage"] == 0
    adamw = make_adamw(module, adam, _GuardedAdamW if guarded else torch.optim.AdamW)
    if isinstance(adamw, _GuardedAdamW):
        adamw.max_grad_norm = adam.max_grad_norm
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # one of its optimisers prints how much memory there is
            return deepspeed.initialize(model=module, optimizer=adamw, config=settings)[0]
    except (ValueError, AssertionError, KeyError, TypeError, NotImplementedError) as error:
        if path is None:
            raise
        raise UserError(f"DeepSpeed does not take {path}: {first_line(error)}") from error
