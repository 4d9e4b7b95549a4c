"""Owns DeepSpeed's configuration: what flags say of it, and what a JSON file may add.

What decides the step itself (batch sizes, optimiser, schedule, clipping, loss scaling) is the flags' alone, so a file
that speaks of it is refused, unless it says "auto", as files for transformers do. What flags and file both speak of
(stage, offload, number format) must agree. Everything else of the file goes to DeepSpeed as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stages.core.errors import UserError

DEFAULT_STAGE = 2

_OF_FLAGS = {
    "train_batch_size": "--per-device-batch-size and --gradient-accumulation-steps",
    "train_micro_batch_size_per_gpu": "--per-device-batch-size",
    "gradient_accumulation_steps": "--gradient-accumulation-steps",
    "managed_gradient_accumulation": "--gradient-accumulation-steps",
    "optimizer": "--learning-rate, --adam-beta1, --adam-beta2, --adam-epsilon and --weight-decay",
    "scheduler": "--lr-scheduler-type, --warmup-ratio and --warmup-steps",
    "gradient_clipping": "--max-grad-norm",
    "gradient_allreduce_op": "--loss-normalization",
    "fp16": "--dtype, float32 or bfloat16",
    "amp": "--dtype, float32 or bfloat16",
}

_FREE = {"zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "aio", "comms_logger"}
_FREE |= {"flops_profiler", "wall_clock_breakdown", "steps_per_print", "dump_state", "memory_breakdown", "log_level"}
"""Of a file: how work is shared out, moved and timed, whatever the numbers; but for what ZeRO++ quantises."""


@dataclass(frozen=True)
class DeepSpeedSettings:
    """How DeepSpeed shares a model out over ranks.

    Attributes:
      stage: 0: nothing is shared; from 1 the optimiser's state, from 2 the gradients, at 3 the parameters as well.
      offload_optimizer, offload_parameters: kept in the memory of the host.
      bfloat16: what a file says of bf16; None: nothing.
      more: what else a file says.
      path: that file.
    """

    stage: int = DEFAULT_STAGE
    offload_optimizer: bool = False
    offload_parameters: bool = False
    bfloat16: bool | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def numerical_settings(self) -> dict[str, Any] | None:
        """What a file says that may change results by more than rounding; None where it says nothing of the kind."""
        moved = self.more.get("zero_optimization", {}).items()
        rounded = {name: value for name, value in moved if "quantized" in name}
        return {name: value for name, value in self.more.items() if name not in _FREE} | rounded or None

    def settings(self, *, bfloat16: bool, max_grad_norm: float) -> dict[str, Any]:
        """What DeepSpeed takes. Its micro-batches are ours: it counts one per step, and is told which pass is the last.

        Args:
          bfloat16: parameters are bfloat16, beside float32 masters in the optimiser; not at stage 0, where float32
            parameters run under autocast.
        """
        zero: dict[str, Any] = {**self.more.get("zero_optimization", {}), "stage": self.stage}
        for name, wanted in (("offload_optimizer", self.offload_optimizer), ("offload_param", self.offload_parameters)):
            if wanted:
                zero[name] = {"device": "cpu", **zero.get(name, {})}
        formats = {}
        if bfloat16 and self.stage > 0:
            formats = {
                "bf16": {**self.more.get("bf16", {}), "enabled": True, "check_grad_overflow": True},
                "data_types": {"grad_accum_dtype": "fp32", **self.more.get("data_types", {})},
            }
        rest = {name: value for name, value in self.more.items() if name != "bf16"}
        return {
            "zero_force_ds_cpu_optimizer": False,  # torch's AdamW runs on a CPU too, with nothing to compile
            **rest,
            **formats,
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": max_grad_norm if self.stage > 0 else 0.0,
            "zero_optimization": zero,
        }


def require_deepspeed() -> None:
    """Raises UserError where DeepSpeed is not installed."""
    if find_spec("deepspeed") is None:
        raise UserError("--engine deepspeed needs DeepSpeed, which is not installed: pip install 'spo-cli[deepspeed]'")


def plan_deepspeed(
    path: Path | None, *, stage: int | None, offload_optimizer: bool, offload_parameters: bool, dtype: str
) -> DeepSpeedSettings:
    """What flags and a DeepSpeed file come to.

    Args:
      path: of the file; None: there is none.
      stage: None where no flag says.
      dtype: as `--dtype` says.

    Raises:
      UserError: no such file, no JSON object, a setting that is the flags', one that they contradict, or a
        combination that DeepSpeed or this engine does not know.
    """
    more = _without_auto(_read(path)) if path else {}
    for name, flags in _OF_FLAGS.items():
        if name in more and not _is_off(more[name]):
            raise UserError(f'{path} sets "{name}", which {flags} decides: leave it out of the file, or write "auto"')
    zero = _table(more, "zero_optimization", path)
    found = zero.get("stage", DEFAULT_STAGE if stage is None else stage)
    if found not in range(4):
        raise UserError(f"{path} says ZeRO stage {found!r}; expected 0, 1, 2 or 3")
    if stage not in (None, found):
        raise UserError(f"--zero-stage {stage}, but {path} says stage {found}: say one of them")
    offload = {}
    for name, flag, asked in (
        ("offload_optimizer", "--offload-optimizer", offload_optimizer),
        ("offload_param", "--offload-parameters", offload_parameters),
    ):
        device = _table(zero, name, path).get("device", "none")
        if device not in ("cpu", "none") or (asked and name in zero and device == "none"):
            raise UserError(f'{path} offloads to "{device}" ({name}); expected cpu, which is what {flag} means')
        offload[name] = asked or device == "cpu"
    if offload["offload_optimizer"] and found == 0:
        raise UserError("ZeRO stage 0 shares nothing out, so nothing of the optimiser is offloaded: take stage 1 to 3")
    if offload["offload_param"] and found < 3:
        raise UserError(f"parameters are offloaded at ZeRO stage 3 alone, and this is stage {found}")
    bfloat16 = _table(more, "bf16", path).get("enabled")
    if bfloat16 is not None and dtype != "auto" and bfloat16 != (dtype == "bfloat16"):
        raise UserError(f'--dtype {dtype}, but {path} sets "bf16" to {json.dumps(bfloat16)}: say one of them')
    return DeepSpeedSettings(found, offload["offload_optimizer"], offload["offload_param"], bfloat16, more, path)


def _read(path: Path) -> Any:
    try:
        told = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--deepspeed-config {path} cannot be read: {error}") from error
    if not isinstance(told, dict):
        raise UserError(f"--deepspeed-config {path} holds no JSON object")
    return told


def _without_auto(value: Any) -> Any:
    """A setting without those within it that leave the choice to others."""
    if not isinstance(value, dict):
        return value
    return {name: _without_auto(one) for name, one in value.items() if one != "auto"}


def _is_off(value: Any) -> bool:
    """A table that says it is not used, or says nothing."""
    return isinstance(value, dict) and (not value or value.get("enabled") is False)


def _table(settings: Mapping[str, Any], name: str, path: Path | None) -> dict[str, Any]:
    table = settings.get(name, {})
    if not isinstance(table, dict):
        raise UserError(f'{path} has "{name}": {json.dumps(table)}; expected a table')
    return table
