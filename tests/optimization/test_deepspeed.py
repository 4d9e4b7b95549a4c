"""Test that `spo train` with DeepSpeed on real ranks (gloo) takes the same steps as one torch process."""

# The types of pandas are wider than what its methods return:
# pyright: reportArgumentType=false

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from safetensors.torch import load_file

from stages.models import checkpoints, loading
from stages.shards.lineage import read_lineage
from stages.training.resumable import partial_directory
from tests.optimization.rank_runs import TrainingFolder, agree, equal, free_port, launched, metrics, skipped, torchrun
from tests.test_train import save_model, write_chain
from tests.test_train_trees import write_trees

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed (the extra `deepspeed`)")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("deepspeed")]

STEPS = 6
STAGES = (0, 1, 2, 3)
PAIRS = {"per_device_batch_size": 2, "gradient_accumulation_steps": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "packed": {"packing": True, "loss": "distill", "beta": 0.1} | PAIRS,
    "micro-batch-whitening": {"whiten": "micro-batch"} | PAIRS,
    "large": {"per_device_batch_size": 11, "gradient_accumulation_steps": 1, "loss_normalization": "sequence"},
    "skipping": {"max_ratio": 1.2},
}
"""Options that change layouts (packed rows, few or all examples per pass), weights of examples, and skipped steps."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> TrainingFolder:
    """Write the inputs of all calls: a chain, a sparse chain, a reference model, and trees of three sampler models."""
    folder = tmp_path_factory.mktemp("deepspeed")
    write_chain(folder / "chain", save_model(folder / "policy", seed=0))
    write_chain(folder / "sparse", folder / "policy", keep=0.03)
    save_model(folder / "reference", seed=1)
    for age in range(3):
        sampler = save_model(folder / f"sampler{age}", 0, lambda network, age=age: perturb(network, 0.003 * age))
        write_trees(folder / f"trees{age}", sampler, seed=age)
    return TrainingFolder(folder)


def perturb(network: torch.nn.Module, amount: float) -> None:
    """Change every weight deterministically by at most `amount`."""
    for value in network.parameters():
        value.add_(amount * torch.sin(value * 1e3))


@pytest.fixture(scope="module")
def torch_alone(inputs: TrainingFolder) -> Path:
    """Train with the torch engine in this process."""
    inputs.run_in_process("torch")
    return inputs.folder / "torch"


@pytest.fixture(scope="module")
def killed(inputs: TrainingFolder) -> TrainingFolder:
    """Kill `zero3` in its fifth step, with a checkpoint every two steps; copy the partial output for three calls."""
    job = inputs.job("zero3", zero_stage=3, save_steps=2, failure={"kill_after": 4})
    assert inputs.launch(2, [job]).returncode != 0
    for name in ("by-torch", "by-three", "by-three-at-1"):
        shutil.copytree(partial_directory(inputs.folder / "zero3"), partial_directory(inputs.folder / name))
    return inputs


@pytest.fixture(scope="module")
def two_ranks(killed: TrainingFolder) -> TrainingFolder:
    """Run all jobs of two ranks in one start of the launcher."""
    config = killed.folder / "deepspeed.json"
    config.write_text(json.dumps({"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}, "zero_force": 1}))
    jobs = [
        *[killed.job(f"zero{stage}", zero_stage=stage, save_steps=2) for stage in STAGES],
        killed.job("uninterrupted", zero_stage=3, save_steps=2),
        killed.job("again", out=str(killed.folder / "zero1"), zero_stage=1),
        killed.job("offloaded", zero_stage=3, offload_optimizer=True, offload_parameters=True),
        killed.job("checkpointed", deepspeed_config=str(config), gradient_checkpointing=True),
        *[killed.job(name, zero_stage=3, **options) for name, options in VARIANTS.items()],
        killed.job("adapted", zero_stage=3, **killed.adapter),
        killed.job("replayed", zero_stage=3, **killed.replay),
        killed.job("idle", **killed.sparse),
        killed.job("tokens", zero_stage=2, token_metrics=True),
        killed.job("packed-tokens", zero_stage=3, token_metrics=True, **VARIANTS["packed"]),
        killed.job("bfloat16", zero_stage=2, dtype="bfloat16", epochs=1),
        killed.job("locked", failure={"locked": True}),
        killed.job("unread", failure={"fails_on": 1}),
        killed.job("too-hot", learning_rate=1e30),
        killed.job("no-torch", engine="torch"),
        killed.job("critic", critic_learning_rate=1e-4),
    ]
    done = killed.launch(2, jobs)
    assert done.returncode == 0, done.stderr[-4000:]
    return killed


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_take_the_steps_of_one_torch_process(two_ranks: TrainingFolder, torch_alone: Path, stage: int):
    assert agree(torch_alone, two_ranks.folder / f"zero{stage}")


@pytest.mark.parametrize("name", ["offloaded", "checkpointed"])
def test_offload_and_gradient_checkpointing_change_only_rounding(
    two_ranks: TrainingFolder, torch_alone: Path, name: str
):
    assert agree(torch_alone, two_ranks.folder / name)


@pytest.mark.parametrize("name", VARIANTS)
def test_layouts_normalizations_and_skipped_steps_agree_with_one_process(two_ranks: TrainingFolder, name: str):
    two_ranks.run_in_process(f"torch-{name}", **VARIANTS[name])
    assert agree(two_ranks.folder / f"torch-{name}", two_ranks.folder / name)
    assert ({*skipped(two_ranks.folder / name)} == {None, 1.0}) == (name == "skipping")


def test_a_rank_or_a_step_without_kept_tokens_agrees_with_one_process(two_ranks: TrainingFolder):
    two_ranks.run_in_process("torch-sparse", **two_ranks.sparse)
    assert agree(two_ranks.folder / "torch-sparse", two_ranks.folder / "idle")
    assert {*skipped(two_ranks.folder / "idle", "empty")} == {None, 1.0}


@pytest.mark.parametrize(("name", "options"), [("tokens", {}), ("packed-tokens", VARIANTS["packed"])])
def test_the_kept_tokens_of_all_ranks_are_those_of_one_process(
    two_ranks: TrainingFolder, name: str, options: dict[str, Any]
):
    two_ranks.run_in_process(f"torch-{name}", token_metrics=True, **options)
    expected, found = (pandas.read_parquet(two_ranks.folder / one / "token-metrics") for one in (f"torch-{name}", name))
    exact = ["step", "trajectory_id", "age", "position", "token_id", "sampler_logprob", "clipped"]
    pandas.testing.assert_frame_equal(found[exact], expected[exact])
    pandas.testing.assert_frame_equal(found, expected, check_exact=False, atol=2e-4)
    assert len(found) == sum(line["tokens/trained"] for line in metrics(two_ranks.folder / name))


def test_replayed_trajectories_are_scored_by_the_policies_that_sampled_them(two_ranks: TrainingFolder):
    two_ranks.run_in_process("torch-replayed", **two_ranks.replay)
    assert agree(two_ranks.folder / "torch-replayed", two_ranks.folder / "replayed")
    assert metrics(two_ranks.folder / "replayed")[0]["approx_kl"] > 1e-4  # other policies sampled part of it


def test_an_adapter_is_trained_on_a_distributed_base(two_ranks: TrainingFolder):
    two_ranks.run_in_process("torch-adapted", **two_ranks.adapter)
    assert agree(two_ranks.folder / "torch-adapted", two_ranks.folder / "adapted")
    assert not (two_ranks.folder / "adapted" / "model.safetensors").exists()


def test_bfloat16_parameters_have_float32_masters(two_ranks: TrainingFolder):
    """A bfloat16 weight has 8 bits of precision: steps of 1e-6 would be lost in most weights."""
    found = load_file(two_ranks.folder / "bfloat16" / "model.safetensors")
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert any(not torch.equal(value, value.bfloat16().float()) for value in found.values())
    two_ranks.run_in_process("torch-bfloat16", dtype="bfloat16", epochs=1)
    losses = [[line["loss"] for line in metrics(two_ranks.folder / name)] for name in ("torch-bfloat16", "bfloat16")]
    assert losses[0] == pytest.approx(losses[1], abs=0.05)


def test_the_result_is_one_hugging_face_directory(two_ranks: TrainingFolder, torch_alone: Path):
    result = two_ranks.folder / "zero3"
    assert {path.name for path in result.iterdir()} == {path.name for path in torch_alone.iterdir()}
    assert json.loads((result / "config.json").read_text()) == json.loads((torch_alone / "config.json").read_text())
    assert {oct(path.stat().st_mode & 0o044) for path in result.iterdir()} == {oct(0o044)}
    loading.load_model(checkpoints.resolve(str(result)), torch.device("cpu"), torch.float32)
    assert not [path for path in two_ranks.folder.iterdir() if path.name.startswith(".zero")]


def test_a_killed_and_resumed_call_ends_with_the_weights_of_an_uninterrupted_one(two_ranks: TrainingFolder):
    assert "after step 4" in " ".join(two_ranks.outcome("zero3", 0)["notes"])
    assert equal(two_ranks.folder / "zero3", two_ranks.folder / "uninterrupted")
    assert len(metrics(two_ranks.folder / "zero3")) == STEPS


def test_three_ranks_and_the_torch_engine_resume_a_call_killed_on_two_ranks(
    two_ranks: TrainingFolder, torch_alone: Path
):
    """No weight's size is divisible by three, and a step of two trajectories leaves one of three ranks idle."""
    few = {"gradient_accumulation_steps": 2, "learning_rate": 1e-4}
    jobs = [
        two_ranks.job("by-three", zero_stage=3, save_steps=2),
        two_ranks.job("by-three-at-1", zero_stage=1, save_steps=2),
        two_ranks.job("three", zero_stage=2, **few),
        two_ranks.job("three-bfloat16", zero_stage=3, dtype="bfloat16", epochs=1),
    ]
    done = two_ranks.launch(3, jobs)
    assert done.returncode == 0, done.stderr[-4000:]
    two_ranks.run_in_process("by-torch", save_steps=2)
    for name in ("by-three", "by-three-at-1", "by-torch"):
        assert agree(torch_alone, two_ranks.folder / name)
    assert "after step 4" in " ".join(two_ranks.outcome("by-three", 0)["notes"])
    two_ranks.run_in_process("torch-three", **few)
    assert agree(two_ranks.folder / "torch-three", two_ranks.folder / "three")
    ours, theirs = ([line["loss"] for line in metrics(two_ranks.folder / f"{name}bfloat16")] for name in ("three-", ""))
    assert ours == pytest.approx(theirs, abs=0.05)


def test_only_rank_0_writes_notes_and_all_ranks_know_that_an_output_is_up_to_date(two_ranks: TrainingFolder):
    assert two_ranks.outcome("zero1", 0)["notes"][0] == "engine: deepspeed, ZeRO stage 1, 2 ranks on cpu"
    assert two_ranks.outcome("zero1", 1)["notes"] == []
    assert [two_ranks.outcome("again", rank)["up_to_date"] for rank in (0, 1)] == [True, True]


def test_the_fingerprint_does_not_depend_on_engine_stage_or_offload(two_ranks: TrainingFolder, torch_alone: Path):
    """An output therefore stays up to date, and a partial output can be resumed, on any number of ranks."""
    found = {
        name: read_lineage(two_ranks.folder / name) for name in ("torch", "zero0", "zero3", "offloaded", "checkpointed")
    }
    fingerprints = {name: one.fingerprint for name, one in found.items() if one}
    assert len(set(fingerprints.values())) == 2  # the file has the unknown key `zero_force`, which may change results
    assert fingerprints["checkpointed"] != fingerprints["torch"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("locked", "is working in"),
        ("unread", "rank 1: this disk is not there"),
        ("too-hot", "take a lower --learning-rate"),
        ("no-torch", "--engine torch runs in one process, but the launcher started 2"),
        ("critic", "--critic-learning-rate requires --engine torch"),
    ],
)
def test_an_error_on_one_rank_ends_all_ranks_with_the_same_message(two_ranks: TrainingFolder, name: str, message: str):
    errors = [two_ranks.outcome(name, rank)["error"] for rank in (0, 1)]
    assert message in errors[0]
    assert all(error.startswith("UserError: ") for error in errors)
    assert not (two_ranks.folder / name).exists()


def test_the_command_prints_its_output_once_under_the_deepspeed_launcher(inputs: TrainingFolder, torch_alone: Path):
    """`deepspeed` inserts a flag of its own before the arguments."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in inputs.options("torch").items()]
    arguments = [
        "train",
        *inputs.options("torch")["advantages"],
        *(one for one in options if "--advantages" not in one),
    ]
    port = f"--master_port={free_port()}"
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus=2", port, "--module"]
    done = launched(*launcher, "spo_cli", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"{torch_alone} is up to date") == 1
    assert done.stdout.count("spo train → ") == 1


def test_a_user_error_is_one_line_under_torchrun(inputs: TrainingFolder):
    done = torchrun(2, "-m", "spo_cli", "train", str(inputs.folder / "nowhere"), "--out", str(inputs.folder / "x"))
    assert done.returncode != 0
    messages = [line for line in done.stderr.splitlines() if line.startswith("spo train: ")]
    assert len(messages) == 1
    assert "nowhere does not exist" in messages[0]
    assert "stages/" not in done.stderr  # no traceback of this package; torchrun prints its own
