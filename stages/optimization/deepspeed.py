"""The optimization engine of many ranks: DeepSpeed distributes a policy over them (ZeRO, arXiv 1910.02054).

`stages.optimization.torch` opens and checks the full policy on the CPU of every rank; then it is distributed. Both
engines score with the same function; DeepSpeed calls it, reduces gradients and steps torch's AdamW.

Weights are float32 masters here too. At stage 0 they are the parameters (bfloat16 products run under autocast); from
stage 1 on, if the parameters are bfloat16, the optimizer holds a float32 copy. A saved directory is the same as the
torch engine's: masters and the optimizer's state by parameter name, gathered on rank 0. Either engine, with any number
of ranks and at any stage, can therefore continue the work of the other.

DeepSpeed clips as torch does, and skips a step whose gradient is not finite.
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
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from stages.core.errors import UserError, first_line
from stages.core.paths import AnyPath
from stages.models import devices, saving
from stages.models.adapters import Lora
from stages.models.checkpoints import OPTIMIZER_FILE
from stages.optimization import lora
from stages.optimization.batches import MicroBatch
from stages.optimization.head import Scored
from stages.optimization.optimizer import MOMENTS, AdamWConfig, load_state, make_adamw, save_state
from stages.optimization.ranks import Ranks
from stages.optimization.torch import TorchEngine
from stages.optimization.zero import DeepSpeedSettings
from stages.optimization.zero_state import ZeroState


class DeepSpeedEngine:
    """A causal language model on many ranks; implements `step.Engine`. All ranks must call the same methods."""

    def __init__(
        self,
        policy: TorchEngine,
        config: AdamWConfig,
        settings: DeepSpeedSettings,
        ranks: Ranks,
        device: torch.device,
        state: Path | None = None,
    ) -> None:
        """Distribute a policy over the ranks.

        Args:
          policy: the full policy on the CPU, the same on every rank.
          config: AdamW's settings.
          settings: how DeepSpeed distributes it.
          device: the device of this rank.
          state: file with an optimizer's state to continue.

        Raises:
          UserError: the state is corrupt or belongs to another model; DeepSpeed rejects the configuration.
        """
        deepspeed = _import(device)
        self.model, self.context_length, self.vocabulary = policy.model, policy.context_length, policy.vocabulary
        self._ranks = ranks
        trained = {name: one for name, one in self.model.named_parameters() if one.requires_grad}
        moments = load_state(state, {name: one.shape for name, one in trained.items()}) if state else {}
        masters = {name: one.data for name, one in trained.items()}
        bfloat16 = policy.compute == torch.bfloat16
        options = settings.deepspeed_options(bfloat16=bfloat16, max_grad_norm=config.max_grad_norm)
        # An error of one rank so far (such as an unreadable state) must reach the others here: in DeepSpeed's own
        # collectives they would wait for it.
        ranks.gather(None)
        self._engine = _initialize(deepspeed, _Scoring(policy), config, options, settings.path)
        self._state = ZeroState(self._engine, trained, settings.stage, ranks)
        if "bf16" in options:
            # DeepSpeed has cast the parameters and copied its masters from the rounded values: restore the exact ones.
            policy.mixed = False
            for name, parameter in trained.items():
                self._state.put(parameter, masters[name])
        self._state.restore(moments)

    def score(self, batch: MicroBatch, temperature: float) -> Scored:
        """Score as `step.Engine.score`."""
        return Scored(*self._engine(batch, temperature))

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        """Accumulate as `step.Engine.backward`. The factor turns DeepSpeed's mean over ranks into a sum."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self._ranks.size)

    def step(self, learning_rate: float) -> float:
        """Step as `step.Engine.step`; DeepSpeed clips."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient's norm is {norm}")
        return norm

    def discard(self) -> None:
        """Clear the gradient.

        DeepSpeed itself clears the gradient of a step that it skips, and it skips steps with an infinite gradient.
        """
        token = np.zeros((1, 1), np.int64)
        self.backward(self.score(MicroBatch(token, token[0], token[0]), 1.0).logprobs.sum() * math.inf)
        self._engine.step()

    def save(self, directory: AnyPath, tokenizer: PreTrainedTokenizerBase, write_more: Callable[[Path], None]) -> None:
        """Save as `step.Engine.save`; all ranks gather, rank 0 writes."""
        weights, state = self._state.gather(), dict[str, Tensor]()
        if steps := self._state.steps():
            moments = {what: self._state.gather(what) for what in MOMENTS}
            state = {f"{what}.{name}": full for what, by_name in moments.items() for name, full in by_name.items()}
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
        """Free the memory."""
        self._engine.destroy()
        del self._engine, self._state
        gc.collect()  # its hooks and modules reference one another
        self._ranks.gather(None)


def open_engine(
    directory: Path,
    config: AdamWConfig,
    settings: DeepSpeedSettings,
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
    """Open the model in a directory on many ranks; see `stages.optimization.torch.open_engine`.

    Each rank first reads the full model into its host's memory.

    Args:
      device: the device of this rank.
      check: called with the policy before it is distributed; it may raise a UserError.

    Raises:
      UserError: as there, and as `DeepSpeedEngine` and `check`.
    """
    if settings.bfloat16 is not None:
        dtype = "bfloat16" if settings.bfloat16 else "float32"
    compute = devices.pick_dtype(dtype, device)
    policy = TorchEngine(
        lora.open_to_train(directory, torch.device("cpu"), compute, adapter, seed),
        config,
        compute=compute,
        gradient_checkpointing=gradient_checkpointing,
        head_chunk=head_chunk,
    )
    check(policy)
    state = directory / OPTIMIZER_FILE
    continued = state if continue_optimizer and state.is_file() else None
    return DeepSpeedEngine(policy, config, settings, ranks, device, continued)


class _Scoring(nn.Module):
    """The module that DeepSpeed wraps: a pass through the decoder and the masked head."""

    def __init__(self, policy: TorchEngine) -> None:
        super().__init__()
        self.model, self._score = policy.model, policy.score

    def forward(self, batch: MicroBatch, temperature: float) -> tuple[Tensor, Tensor]:
        return tuple(self._score(batch, temperature))  # pyright: ignore[reportReturnType]


class _GuardedAdamW(torch.optim.AdamW):
    """AdamW that clips, and skips a step with a non-finite gradient; from stage 1 on DeepSpeed does both itself."""

    max_grad_norm = math.inf
    _global_grad_norm = 0.0  # DeepSpeed reads the norm from this attribute

    def step(self, closure: None = None) -> None:
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self._global_grad_norm = float(nn.utils.clip_grad_norm_(parameters, self.max_grad_norm))
        if math.isfinite(self._global_grad_norm):
            super().step(closure)


def _import(device: torch.device) -> Any:
    """Import DeepSpeed, set up for a device."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    if device.index is not None:
        os.environ["LOCAL_RANK"] = str(device.index)  # DeepSpeed takes the device of a rank from here
        torch.cuda.set_device(device)
    os.environ.setdefault("LOCAL_RANK", "0")
    import deepspeed

    deepspeed.utils.logger.setLevel("ERROR")  # it warns of skipped steps; `step` raises for them
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    if device.type == "cpu":  # else it compiles an operation that only its inference uses
        cast("Any", deepspeed.ops).__compatible_ops__ = defaultdict(bool)
    return deepspeed


def _initialize(
    deepspeed: Any, module: _Scoring, config: AdamWConfig, options: dict[str, Any], path: AnyPath | None
) -> Any:
    head = cast("nn.Module", module.model.get_output_embeddings())
    if options["zero_optimization"]["stage"] == 3:  # the head's weight is used without calling the head
        for parameter in head.parameters(recurse=False):
            deepspeed.zero.register_external_parameter(module, parameter)
    guarded = options["zero_optimization"]["stage"] == 0
    adamw = make_adamw(module, config, _GuardedAdamW if guarded else torch.optim.AdamW)
    if isinstance(adamw, _GuardedAdamW):
        adamw.max_grad_norm = config.max_grad_norm
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # one of its optimizers prints memory statistics
            return deepspeed.initialize(model=module, optimizer=adamw, config=options)[0]
    except (ValueError, AssertionError, KeyError, TypeError, NotImplementedError) as error:
        if path is None:
            raise
        raise UserError(f"DeepSpeed rejects {path}: {first_line(error)}") from error
