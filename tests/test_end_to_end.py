"""Commands as a user types them: in a chain, killed at any moment, interrupted by a scheduler, on real questions."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from stages.core.paths import log_directory
from stages.models.presets import make_model
from tests.chains import rows
from tests.command_server import Commands
from tests.shards.samples import files

MOMENTS = 10
ENGINE = ("--threads", "1", "--max-batch-rows", "16")
QUESTIONS = ("--task", "arithmetic", "--task-arg", "operations=1", "--max-tokens", "24", *ENGINE)


@pytest.fixture(scope="module")
def spo() -> Iterator[Commands]:
    with Commands() as commands:
        commands.run("--version")  # the first measured command must not wait for imports
        yield commands


def command(verb: str, chain: Path, out: Path) -> list[str | Path]:
    """Return a command whose work has a dozen chunks."""
    sampling = (*QUESTIONS, "--num-questions", "12", "--num-generations", "2", "--chunk-questions", "1")
    return [
        *{
            "rollout": ("rollout", "--model", chain / "policy", *sampling),
            "eval": ("eval", "--model", chain / "policy", *sampling, "--temperature", "1"),
            "estimate": ("estimate", chain / "cutpoints", "--rollouts", "2", *ENGINE, "--chunk-trajectories", "4"),
        }[verb],
        *("--out", out),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["rollout", "estimate", "eval"])
def test_a_stage_killed_at_any_moment_and_rerun_writes_the_same_bytes(
    verb: str, spo: Commands, chain: Path, tmp_path: Path
):
    unbroken = spo.finish(*command(verb, chain, tmp_path / "unbroken"))
    expected = files(tmp_path / "unbroken")
    assert list(expected) == ["part-00000-of-00001.parquet"]
    killed_at_work = 0
    for moment in range(1, MOMENTS + 1):
        out = tmp_path / f"killed-{moment}"
        if moment % 2:  # at any time
            killed = spo.run(*command(verb, chain, out), seconds=unbroken.seconds * moment / (MOMENTS + 1))
            assert killed.code in (-signal.SIGPROF, 0)
        else:  # between two chunks
            killed = spo.run(*command(verb, chain, out), chunks=moment // 2)
            assert killed.code == -signal.SIGKILL
        killed_at_work += any(out.glob(".part-*/chunk-*"))
        again = spo.finish(*command(verb, chain, out))
        assert ("resuming" in again.stderr) == any(
            "resuming" in path.read_text() for path in log_directory(out).glob("*")
        )
        assert files(out) == expected
    assert killed_at_work >= MOMENTS // 2, "enough of them were killed between two chunks"


def start_and_wait_for_a_chunk(arguments: list[str | Path], out: Path) -> subprocess.Popen[str]:
    """Start the command in a process of its own; return it once its first chunk is committed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "spo_cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not any(out.glob(".part-*/chunk-*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "sent"), [("rollout", signal.SIGTERM), ("estimate", signal.SIGUSR1)])
def test_a_signal_of_a_scheduler_ends_a_stage_with_code_4_and_one_line(
    verb: str, sent: signal.Signals, spo: Commands, chain: Path, tmp_path: Path
):
    work = {"rollout": ["--num-questions", "60"], "estimate": ["--rollouts", "15"]}[verb]
    arguments = [*command(verb, chain, tmp_path / "out"), *work]
    process = start_and_wait_for_a_chunk(arguments, tmp_path / "out")
    process.send_signal(sent)
    process.send_signal(sent)  # schedulers repeat their signals
    _, stderr = process.communicate()
    assert process.returncode == 4, stderr
    lines = [line for line in stderr.splitlines() if line.startswith(f"spo {verb}:")]
    assert len(lines) == 1, stderr
    assert f"stopped by {sent.name}" in lines[0]
    assert "chunks committed" in lines[0]
    assert "Traceback" not in stderr
    assert not list((tmp_path / "out").glob("*.parquet"))
    again = spo.finish(*arguments)
    assert "resuming" in again.stderr
    spo.finish(*command(verb, chain, tmp_path / "unbroken"), *work)
    assert files(tmp_path / "out") == files(tmp_path / "unbroken")


def test_a_chain_of_array_tasks_typed_by_hand(spo: Commands, policy: Path, tmp_path: Path):
    """Rollout and segment run as arrays of three tasks; estimate runs as two, fewer than the parts."""
    here = tmp_path / "000"

    def array(count: int, *arguments: str | Path) -> None:
        for task in range(count):
            names = {"ID": task, "COUNT": count, "MIN": 0, "MAX": count - 1, "STEP": 1}
            variables = {f"SLURM_ARRAY_TASK_{name}": str(number) for name, number in names.items()}
            spo.finish(*arguments, variables=variables)

    small = ("--num-questions", "7", "--num-generations", "2", "--stop", "?")
    array(3, "rollout", "--model", policy, *QUESTIONS, *small, "--out", here / "trajectories")
    array(3, "segment", here / "trajectories", "--out", here / "cutpoints")
    array(2, "estimate", here / "cutpoints", "--rollouts", "2", *ENGINE, "--out", here / "advantages")
    spo.finish("train", here / "advantages", "--out", here / "checkpoint", "--threads", "1", "--learning-rate", "1e-4")
    spo.finish("eval", "--model", here / "checkpoint", *QUESTIONS, "--num-questions", "3", "--out", here / "eval")

    assert len(list((here / "advantages").glob("*.parquet"))) == 3
    trajectories, advantages = (pd.read_parquet(here / name) for name in ("trajectories", "advantages"))
    assert len(trajectories) == 14
    assert set(advantages["trajectory_id"]) == set(trajectories["trajectory_id"])
    assert len(pd.read_parquet(here / "eval")) == 3
    assert (here / "checkpoint" / "model.safetensors").is_file()
    again = spo.finish("estimate", here / "cutpoints", "--rollouts", "2", *ENGINE, "--out", here / "advantages")
    assert "up to date" in again.stdout, "rollouts take their stop strings from the trajectories"


def test_an_error_is_one_line_and_an_exit_code(spo: Commands, chain: Path, tmp_path: Path):
    for arguments, code, message in [
        (["segment", tmp_path / "none", "--out", tmp_path / "out"], 3, "does not exist"),
        (["segment", chain / "cutpoints", "--out", tmp_path / "out"], 2, "`spo estimate` reads it"),
        (["estimate", chain / "cutpoints", "--model", "./none", "--out", tmp_path / "out"], 2, "no model directory"),
        (
            ["rollout", "--model", chain / "policy", "--task", "chess", "--out", tmp_path / "out"],
            2,
            "--task must be one of arithmetic, ",
        ),
        (["run", tmp_path / "none.toml"], 2, "cannot be read"),
    ]:
        result = spo.run(*arguments)
        assert (result.code, len(result.stderr.splitlines())) == (code, 1), result.stderr
        assert message in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_full_disk_is_reported_in_one_line_and_no_partial_policy_is_left(chain: Path, tmp_path: Path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["unshare", "-Urm", "sh", "-c", f'mount -t tmpfs -o size=300k none {small} && "$0" "$@"; code=$?; '
             f'ls -A {small}; exit $code']  # fmt: skip
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system (unshare -Urm)")
    train = [
        sys.executable,
        "-m",
        "spo_cli",
        "train",
        chain / "advantages",
        "--out",
        small / "policy",
        "--threads",
        "1",
    ]
    result = subprocess.run([*mount, *train], capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert result.stderr.splitlines()[-1].startswith(f"spo train: cannot write {small / 'policy'}: ")
    assert "No space left" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout.split() == ["_logs"]  # `ls -A` finds nothing of the policy but its log


def test_five_commands_over_real_questions(spo: Commands, shared: Path, tmp_path: Path):
    model, tokenizer = make_model("tiny", 0)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    task = ("--task", "gsm8k", "--data", shared / "data" / "gsm8k", "--max-tokens", "24", "--threads", "1")
    few = ("--num-questions", "64", "--num-generations", "2", "--shuffle-seed", "1")
    spo.finish("rollout", "--model", tmp_path / "model", *task, *few, "--out", tmp_path / "trajectories")
    spo.finish("segment", tmp_path / "trajectories", "--interval", "12", "--out", tmp_path / "cutpoints")
    value = ("--rollouts", "2", "--threads", "1", "--out", tmp_path / "advantages")
    spo.finish("estimate", tmp_path / "cutpoints", *value)
    spo.finish("train", tmp_path / "advantages", "--threads", "1", "--out", tmp_path / "checkpoint")
    spo.finish("eval", "--model", tmp_path / "checkpoint", *task, "--num-questions", "8", "--out", tmp_path / "eval")

    names = ("trajectories", "cutpoints", "advantages", "eval")
    trajectories, cutpoints, advantages, answers = (pd.read_parquet(tmp_path / name) for name in names)
    assert len(trajectories) == 128
    assert len({*trajectories["question_id"]}) == 64
    for segments in (cutpoints, advantages):
        joined = segments.merge(trajectories, on="trajectory_id", validate="many_to_one")
        assert len(joined) == len(segments)
        assert {*joined["trajectory_id"]} == {*trajectories["trajectory_id"]}
    both = advantages.merge(cutpoints, on=["trajectory_id", "segment_index"], validate="one_to_one")
    assert len(both) == len(advantages) == len(cutpoints)
    questions = pd.read_parquet(shared / "data" / "gsm8k" / "train.parquet")
    for row in rows(tmp_path / "trajectories")[::16]:
        number = int(row["question_id"].rpartition("-")[2])
        assert str(questions["question"][number]) in row["prompt"]
        assert row["prompt_token_ids"] == list(row["prompt"].encode())
    assert answers["question_id"].tolist() == [f"gsm8k-test-{i}" for i in range(8)]
