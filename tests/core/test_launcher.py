"""Rank, size and address are read from the environment of a launcher."""

from __future__ import annotations

import pytest

from stages.core.errors import UserError
from stages.core.launcher import Launch, drop_local_rank, read_launch

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node2", "MASTER_PORT": "29401"}
STEP = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "71"}
STEP |= {"SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "gpu[03-04]"}


def test_all_fields_come_from_the_variables_of_torchrun():
    assert read_launch(TORCHRUN) == Launch(5, 8, 1, "node2", 29401)


def test_without_a_launcher_and_with_one_rank_the_launch_is_a_single_process():
    assert read_launch({}) == Launch()
    assert read_launch(TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"}) == Launch()
    assert read_launch({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) == Launch()


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[03-04]", "gpu03"),
        ("gpu7", "gpu7"),
        ("a1,b2", "a1"),
        ("rack1-n[9,11-12],x[1-2]", "rack1-n9"),
        ("r[1,3]n[02-07]", "r1n02"),
    ],
)
def test_tasks_of_a_slurm_step_use_the_address_of_its_first_node(nodes: str, first: str):
    launch = read_launch(STEP | {"SLURM_STEP_NODELIST": nodes})
    assert (launch.rank, launch.size, launch.local_rank, launch.address) == (3, 4, 1, first)


def test_slurm_steps_get_different_ports_unless_the_environment_sets_one():
    ports = {read_launch(STEP | {"SLURM_JOB_ID": str(job)}).port for job in range(100)}
    assert len(ports) == 100
    assert all(15000 <= port < 30000 for port in ports)
    assert read_launch(STEP | {"MASTER_ADDR": "here", "MASTER_PORT": "4000"}) == Launch(3, 4, 1, "here", 4000)


def test_the_batch_script_of_a_slurm_job_is_a_single_process():
    assert read_launch({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "71"}) == Launch()


def test_torchrun_takes_precedence_over_the_slurm_step():
    assert read_launch(STEP | TORCHRUN).rank == 5


@pytest.mark.parametrize("broken", [{"MASTER_PORT": "x"}, {"RANK": "8"}, {"MASTER_ADDR": ""}])
def test_inconsistent_variables_are_refused(broken: dict[str, str]):
    with pytest.raises(UserError, match="from the variables of the launcher; found RANK="):
        read_launch(TORCHRUN | broken)


def test_the_local_rank_flag_of_the_deepspeed_launcher_is_dropped():
    assert drop_local_rank(["train", "--local_rank=1", "x"], {"LOCAL_RANK": "1"}) == ["train", "x"]
    assert drop_local_rank(["train", "--local_rank=1"], {}) == ["train", "--local_rank=1"]
