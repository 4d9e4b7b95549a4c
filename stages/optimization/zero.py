"""Resolve DeepSpeed's configuration from flags and an optional JSON file.

Flags alone decide the step itself (batch sizes, optimizer, schedule, clipping, loss scaling): a file that sets one of
these is rejected, unless the value is "auto", as in files for transformers. Settings that both can express (stage,
offload, number format) must agree. All other settings of the file are passed to DeepSpeed unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from stages.core.errors import UserError
from stages.core.json_files import read_json
from stages.core.paths import AnyPath

DEFAULT_STAGE = 2

_DECIDED_BY_FLAGS = {
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
"""Settings that only distribute, move or time the work; results stay the same, except for ZeRO++ quantization."""


@dataclass(frozen=True)
class DeepSpeedSettings:
    """How DeepSpeed distributes a model over ranks.

    Attributes:
      stage: ZeRO stage: 0 distributes nothing, 1 the optimizer's state, 2 also the gradients, 3 also the parameters.
      offload_optimizer, offload_parameters: keep them in the host's memory.
      bfloat16: `bf16.enabled` of the file; None if the file does not set it.
      more: the settings of the file.
      path: the file; None without one.
    """

    stage: int = DEFAULT_STAGE
    offload_optimizer: bool = False
    offload_parameters: bool = False
    bfloat16: bool | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    path: AnyPath | None = None

    def numerical_settings(self) -> dict[str, Any] | None:
        """Return the settings of the file that may change results by more than rounding; None without any."""
        zero = self.more.get("zero_optimization", {}).items()
        quantization = {name: value for name, value in zero if "quantized" in name}
        return {name: value for name, value in self.more.items() if name not in _FREE} | quantization or None

    def deepspeed_options(self, *, bfloat16: bool, max_grad_norm: float) -> dict[str, Any]:
        """Return the configuration to pass to DeepSpeed.

        DeepSpeed counts one micro-batch per step; the engine calls its passes itself and marks the last one
        (`set_gradient_accumulation_boundary`).

        Args:
          bfloat16: compute in bfloat16. From stage 1 on, parameters are bfloat16 and the optimizer holds float32
            masters; at stage 0, float32 parameters run under autocast.
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
            "zero_force_ds_cpu_optimizer": False,  # torch's AdamW also runs on a CPU, and needs no compiler
            **rest,
            **formats,
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": max_grad_norm if self.stage > 0 else 0.0,
            "zero_optimization": zero,
        }


def require_deepspeed() -> None:
    """Raise a UserError unless DeepSpeed is installed."""
    if find_spec("deepspeed") is None:
        raise UserError("--engine deepspeed needs DeepSpeed, which is not installed: pip install 'spo-cli[deepspeed]'")


def plan_deepspeed(
    path: AnyPath | None, *, stage: int | None, offload_optimizer: bool, offload_parameters: bool, dtype: str
) -> DeepSpeedSettings:
    """Combine flags and a DeepSpeed file.

    Args:
      path: the file; None without one.
      stage: `--zero-stage`; None if it is not given.
      dtype: `--dtype`.

    Raises:
      UserError: the file cannot be read or is not a JSON object; it sets what flags decide, or contradicts them;
        DeepSpeed or this engine does not support the combination.
    """
    more = _without_auto(_read(path)) if path else {}
    for name, flags in _DECIDED_BY_FLAGS.items():
        if name in more and not _is_off(more[name]):
            raise UserError(f'{path} sets "{name}", which {flags} decides: remove it from the file, or write "auto"')
    zero = _table(more, "zero_optimization", path)
    found = zero.get("stage", DEFAULT_STAGE if stage is None else stage)
    if found not in range(4):
        raise UserError(f"{path} sets ZeRO stage {found!r}; expected 0, 1, 2 or 3")
    if stage not in (None, found):
        raise UserError(f"--zero-stage {stage}, but {path} sets stage {found}: set one of them only")
    offload = {}
    for name, flag, given in (
        ("offload_optimizer", "--offload-optimizer", offload_optimizer),
        ("offload_param", "--offload-parameters", offload_parameters),
    ):
        device = _table(zero, name, path).get("device", "none")
        if device not in ("cpu", "none") or (given and name in zero and device == "none"):
            raise UserError(f'{path} offloads to "{device}" ({name}); expected "cpu", as {flag} does')
        offload[name] = given or device == "cpu"
    if offload["offload_optimizer"] and found == 0:
        raise UserError("ZeRO stage 0 distributes nothing, so it cannot offload the optimizer: use stage 1, 2 or 3")
    if offload["offload_param"] and found < 3:
        raise UserError(f"only ZeRO stage 3 can offload parameters; got stage {found}")
    bfloat16 = _table(more, "bf16", path).get("enabled")
    if bfloat16 is not None and dtype != "auto" and bfloat16 != (dtype == "bfloat16"):
        raise UserError(f'--dtype {dtype}, but {path} sets "bf16" to {json.dumps(bfloat16)}: set one of them only')
    return DeepSpeedSettings(found, offload["offload_optimizer"], offload["offload_param"], bfloat16, more, path)


def _read(path: AnyPath) -> Any:
    try:
        return read_json(path)
    except UserError as error:
        raise UserError(f"--deepspeed-config: {error}") from error


def _without_auto(value: Any) -> Any:
    """Remove the settings whose value is "auto", at any depth."""
    if not isinstance(value, dict):
        return value
    return {name: _without_auto(one) for name, one in value.items() if one != "auto"}


def _is_off(value: Any) -> bool:
    """Return whether a table is empty or disabled."""
    return isinstance(value, dict) and (not value or value.get("enabled") is False)


def _table(settings: Mapping[str, Any], name: str, path: AnyPath | None) -> dict[str, Any]:
    table = settings.get(name, {})
    if not isinstance(table, dict):
        raise UserError(f'{path} has "{name}": {json.dumps(table)}; expected a table')
    return table
