"""DeepSpeed's configuration: flags and a file are combined, contradictions are rejected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages.configs.train import LearningOptions, resolve_training_engine
from stages.core.errors import UserError
from stages.optimization.zero import DeepSpeedSettings, plan_deepspeed


def plan(folder: Path, file: Any = None, **flags: Any) -> DeepSpeedSettings:
    path = None
    if file is not None:
        path = folder / "ds.json"
        path.write_text(json.dumps(file))
    given = {"stage": None, "offload_optimizer": False, "offload_parameters": False, "dtype": "auto"}
    return plan_deepspeed(path, **given | flags)


def test_the_default_is_stage_2_with_one_micro_batch_per_step(tmp_path: Path):
    assert plan(tmp_path).deepspeed_options(bfloat16=False, max_grad_norm=0.5) == {
        "zero_force_ds_cpu_optimizer": False,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.5,
        "zero_optimization": {"stage": 2},
    }


def test_gradients_of_bfloat16_weights_are_summed_in_float32(tmp_path: Path):
    settings = plan(tmp_path, stage=3).deepspeed_options(bfloat16=True, max_grad_norm=1.0)
    assert settings["bf16"] == {"enabled": True, "check_grad_overflow": True}
    assert settings["data_types"] == {"grad_accum_dtype": "fp32"}


def test_at_stage_0_weights_stay_float32_and_the_optimizer_clips(tmp_path: Path):
    settings = plan(tmp_path, {"bf16": {"enabled": True}}, stage=0).deepspeed_options(bfloat16=True, max_grad_norm=1.0)
    assert "bf16" not in settings
    assert settings["gradient_clipping"] == 0.0


def test_a_file_for_transformers_with_auto_values_is_accepted(tmp_path: Path):
    file = {
        "bf16": {"enabled": "auto"},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto"}},
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "fp16": {"enabled": False},
        "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}, "reduce_bucket_size": "auto"},
        "steps_per_print": 100,
    }
    with pytest.raises(UserError, match='sets "optimizer", which --learning-rate'):
        plan(tmp_path, file)
    del file["optimizer"]
    found = plan(tmp_path, file)
    assert (found.stage, found.offload_parameters, found.offload_optimizer, found.bfloat16) == (3, True, False, None)
    settings = found.deepspeed_options(bfloat16=False, max_grad_norm=1.0)
    assert settings["zero_optimization"] == {"stage": 3, "offload_param": {"device": "cpu"}}
    assert settings["steps_per_print"] == 100


def test_settings_that_only_distribute_work_are_not_numerical(tmp_path: Path):
    file = {"zero_optimization": {"stage": 1}, "wall_clock_breakdown": True}
    assert plan(tmp_path, file).numerical_settings() is None
    assert plan(tmp_path, file | {"communication_data_type": "bf16"}).numerical_settings() == {
        "communication_data_type": "bf16"
    }


def test_quantized_communication_is_a_numerical_setting(tmp_path: Path):
    file = {"zero_optimization": {"stage": 3, "zero_quantized_gradients": True, "reduce_bucket_size": 1000}}
    assert plan(tmp_path, file).numerical_settings() == {"zero_quantized_gradients": True}


@pytest.mark.parametrize(
    ("file", "flags", "message"),
    [
        ({"train_batch_size": 8}, {}, "--per-device-batch-size and --gradient-accumulation-steps decides"),
        ({"fp16": {"enabled": True}}, {}, "--dtype, float32 or bfloat16"),
        ({"zero_optimization": {"stage": 1}}, {"stage": 2}, "--zero-stage 2, but .* sets stage 1"),
        ({"zero_optimization": {"stage": 7}}, {}, "ZeRO stage 7; expected 0, 1, 2 or 3"),
        ({"zero_optimization": 3}, {}, "expected a table"),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, {}, 'offloads to "nvme"'),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "none"}}},
            {"offload_parameters": True},
            'offloads to "none" .*expected "cpu", as --offload-parameters does',
        ),
        ({"bf16": {"enabled": True}}, {"dtype": "float32"}, '--dtype float32, but .* sets "bf16" to true'),
        (None, {"stage": 0, "offload_optimizer": True}, "use stage 1, 2 or 3"),
        (None, {"offload_parameters": True}, "only ZeRO stage 3 can offload parameters; got stage 2"),
        ([], {}, "holds an array; expected an object"),
    ],
)
def test_contradictions_are_rejected(tmp_path: Path, file: Any, flags: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        plan(tmp_path, file, **flags)


def test_a_missing_file_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read"):
        plan_deepspeed(tmp_path / "x.json", stage=None, offload_optimizer=False, offload_parameters=False, dtype="auto")


def test_auto_selects_deepspeed_for_several_ranks():
    assert [resolve_training_engine(LearningOptions(), ranks) for ranks in (1, 2)] == ["torch", "deepspeed"]
    assert resolve_training_engine(LearningOptions(engine="deepspeed", zero_stage=3), 1) == "deepspeed"


@pytest.mark.parametrize(
    ("options", "ranks", "message"),
    [
        (LearningOptions(zero_stage=3), 1, "require --engine deepspeed: pass it"),
        (LearningOptions(engine="torch", offload_optimizer=True), 1, "require --engine deepspeed"),
        (LearningOptions(engine="torch"), 4, "the launcher started 4"),
        (LearningOptions(critic_learning_rate=1e-4), 4, "requires --engine torch"),
    ],
)
def test_options_that_an_engine_does_not_support_are_rejected(options: LearningOptions, ranks: int, message: str):
    with pytest.raises(UserError, match=message):
        resolve_training_engine(options, ranks)
