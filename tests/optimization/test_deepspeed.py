"""`spo train` with DeepSpeed on real ranks (gloo) takes the same steps as one torch process."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

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
def here(tmp_path_factory: pytest.TempPathFactory) -> TrainingFolder:
    folder = tmp_path_factory.mktemp("deepspeed")
    write_chain(folder / "chain", save_model(folder / "policy", seed=0))
    write_chain(folder / "sparse", folder / "policy", keep=0.03)
    save_model(folder / "reference", seed=1)
    for age in range(3):
        sampler = save_model(folder / f"sampler{age}", 0, lambda network, age=age: nudge(network, 0.003 * age))
        write_trees(folder / f"trees{age}", sampler, seed=age)
    return TrainingFolder(folder)


def nudge(network: torch.nn.Module, amount: float) -> None:
    for value in network.parameters():
        value.add_(amount * torch.sin(value * 1e3))


@pytest.fixture(scope="module")
def torch_alone(here: TrainingFolder) -> Path:
    here.run_in_process("torch")
    return here.folder / "torch"


@pytest.fixture(scope="module")
def killed(here: TrainingFolder) -> TrainingFolder:
    """Kill `zero3` in its fifth step, with a checkpoint after every second step; copy what is left for three calls."""
    job = here.job("zero3", zero_stage=3, save_steps=2, failure={"kill_after": 4})
    assert here.launch(2, [job]).returncode != 0
    for name in ("by-torch", "by-three", "by-three-at-1"):
        shutil.copytree(partial_directory(here.folder / "zero3"), partial_directory(here.folder / name))
    return here


@pytest.fixture(scope="module")
def two(killed: TrainingFolder) -> TrainingFolder:
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
def test_two_ranks_take_the_steps_of_one_torch_process(two: TrainingFolder, torch_alone: Path, stage: int):
    assert agree(torch_alone, two.folder / f"zero{stage}")


@pytest.mark.parametrize("name", ["offloaded", "checkpointed"])
def test_offload_and_gradient_checkpointing_change_only_rounding(two: TrainingFolder, torch_alone: Path, name: str):
    assert agree(torch_alone, two.folder / name)


@pytest.mark.parametrize("name", VARIANTS)
def test_layouts_normalizations_and_skipped_steps_agree_with_one_process(two: TrainingFolder, name: str):
    two.run_in_process(f"torch-{name}", **VARIANTS[name])
    assert agree(two.folder / f"torch-{name}", two.folder / name)
    assert ({*skipped(two.folder / name)} == {None, 1.0}) == (name == "skipping")


def test_a_rank_or_a_step_without_kept_tokens_agrees_with_one_process(two: TrainingFolder):
    two.run_in_process("torch-sparse", **two.sparse)
    assert agree(two.folder / "torch-sparse", two.folder / "idle")
    assert {*skipped(two.folder / "idle", "empty")} == {None, 1.0}


def test_replayed_trajectories_are_scored_by_the_policies_that_sampled_them(two: TrainingFolder):
    two.run_in_process("torch-replayed", **two.replay)
    assert agree(two.folder / "torch-replayed", two.folder / "replayed")
    assert metrics(two.folder / "replayed")[0]["approx_kl"] > 1e-4  # other policies sampled part of it


def test_an_adapter_is_trained_on_a_distributed_base(two: TrainingFolder):
    two.run_in_process("torch-adapted", **two.adapter)
    assert agree(two.folder / "torch-adapted", two.folder / "adapted")
    assert not (two.folder / "adapted" / "model.safetensors").exists()


def test_bfloat16_parameters_have_float32_masters(two: TrainingFolder):
    """A bfloat16 weight has 8 bits of precision: steps of 1e-6 would be lost in most weights."""
    found = load_file(two.folder / "bfloat16" / "model.safetensors")
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert any(not torch.equal(value, value.bfloat16().float()) for value in found.values())
    two.run_in_process("torch-bfloat16", dtype="bfloat16", epochs=1)
    losses = [[line["loss"] for line in metrics(two.folder / name)] for name in ("torch-bfloat16", "bfloat16")]
    assert losses[0] == pytest.approx(losses[1], abs=0.05)


def test_the_result_is_one_hugging_face_directory(two: TrainingFolder, torch_alone: Path):
    ours = two.folder / "zero3"
    assert {path.name for path in ours.iterdir()} == {path.name for path in torch_alone.iterdir()}
    assert json.loads((ours / "config.json").read_text()) == json.loads((torch_alone / "config.json").read_text())
    assert {oct(path.stat().st_mode & 0o044) for path in ours.iterdir()} == {oct(0o044)}
    loading.load_model(checkpoints.resolve(str(ours)), torch.device("cpu"), torch.float32)
    assert not [path for path in two.folder.iterdir() if path.name.startswith(".zero")]


def test_a_killed_and_resumed_call_ends_with_the_weights_of_an_uninterrupted_one(two: TrainingFolder):
    assert "after step 4" in " ".join(two.outcome("zero3", 0)["notes"])
    assert equal(two.folder / "zero3", two.folder / "uninterrupted")
    assert len(metrics(two.folder / "zero3")) == STEPS


def test_three_ranks_and_the_torch_engine_resume_a_call_killed_on_two_ranks(two: TrainingFolder, torch_alone: Path):
    """Three ranks divide no weight's size, and a step of two trajectories leaves one rank idle."""
    few = {"gradient_accumulation_steps": 2, "learning_rate": 1e-4}
    jobs = [
        two.job("by-three", zero_stage=3, save_steps=2),
        two.job("by-three-at-1", zero_stage=1, save_steps=2),
        two.job("three", zero_stage=2, **few),
        two.job("three-bfloat16", zero_stage=3, dtype="bfloat16", epochs=1),
    ]
    done = two.launch(3, jobs)
    assert done.returncode == 0, done.stderr[-4000:]
    two.run_in_process("by-torch", save_steps=2)
    for name in ("by-three", "by-three-at-1", "by-torch"):
        assert agree(torch_alone, two.folder / name)
    assert "after step 4" in " ".join(two.outcome("by-three", 0)["notes"])
    two.run_in_process("torch-three", **few)
    assert agree(two.folder / "torch-three", two.folder / "three")
    ours, theirs = ([line["loss"] for line in metrics(two.folder / f"{name}bfloat16")] for name in ("three-", ""))
    assert ours == pytest.approx(theirs, abs=0.05)


def test_only_rank_0_writes_notes_and_all_ranks_know_that_an_output_is_up_to_date(two: TrainingFolder):
    assert two.outcome("zero1", 0)["notes"][0] == "engine: deepspeed, ZeRO stage 1, 2 ranks on cpu"
    assert two.outcome("zero1", 1)["notes"] == []
    assert [two.outcome("again", rank)["up_to_date"] for rank in (0, 1)] == [True, True]


def test_the_fingerprint_does_not_depend_on_engine_stage_or_offload(two: TrainingFolder, torch_alone: Path):
    """So an output stays up to date, and unfinished work can be resumed, on any number of ranks."""
    found = {name: read_lineage(two.folder / name) for name in ("torch", "zero0", "zero3", "offloaded", "checkpointed")}
    prints = {name: one.fingerprint for name, one in found.items() if one}
    assert len(set(prints.values())) == 2  # `zero_force` in the file is unknown, so it may change more than rounding
    assert prints["checkpointed"] != prints["torch"]


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
def test_an_error_of_one_rank_ends_all_ranks_with_the_same_line(two: TrainingFolder, name: str, message: str):
    errors = [two.outcome(name, rank)["error"] for rank in (0, 1)]
    assert message in errors[0]
    assert all(error.startswith("UserError: ") for error in errors)
    assert not (two.folder / name).exists()


def test_the_command_prints_its_output_once_under_the_launcher_of_deepspeed(here: TrainingFolder, torch_alone: Path):
    """`deepspeed` inserts a flag of its own before the arguments."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in here.options("torch").items()]
    arguments = ["train", *here.options("torch")["advantages"], *(one for one in options if "--advantages" not in one)]
    port = f"--master_port={free_port()}"
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus=2", port, "--module"]
    done = launched(*launcher, "spo_cli", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"{torch_alone} is up to date") == 1
    assert done.stdout.count("spo train → ") == 1


def test_a_user_error_is_one_line_under_torchrun(here: TrainingFolder):
    done = torchrun(2, "-m", "spo_cli", "train", str(here.folder / "nowhere"), "--out", str(here.folder / "x"))
    assert done.returncode != 0
    ours = [line for line in done.stderr.splitlines() if line.startswith("spo train: ")]
    assert len(ours) == 1
    assert "nowhere does not exist" in ours[0]
    assert "stages/" not in done.stderr  # no traceback of this package; torchrun prints its own
