"""`spo slurm` on a real one-node SLURM: killed and requeued tasks, and many tasks that write one artefact."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.pipeline import iterate
from stages.shards.parts import open_artefact
from tests.chains import cut, rows, sample
from tests.shards.samples import files
from tests.slurm_cluster import missing_programs, slurm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("slurm"),
    pytest.mark.skipif(
        bool(missing_programs()),
        reason=f"needs the programs of SLURM (apt-get install slurm-wlm munge): no {', '.join(missing_programs())}",
    ),
]

RECIPE = """
[run]
out = "runs/try"
iterations = 1
task = "arithmetic"
task_arg = ["operations=1"]
threads = 1
max_tokens = 64

[rollout]
num_questions = 30
num_generations = 8
chunk_questions = 1
max_batch_rows = 1  # slow enough to be caught at work

[segment]
interval = 2

[estimate]
rollouts = 2

[train]
learning_rate = 1e-3
per_device_batch_size = 16

[eval]
num_questions = 8

[slurm]
num_shards = 3
time = "30"
gpus = 0
mem = "100M"

[slurm.segment]
num_shards = 1

[slurm.estimate]
num_shards = 2

[slurm.eval]
num_shards = 4
shards_per_task = 4
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    with slurm() as environment:
        binaries = Path(sys.executable).parent
        yield {**os.environ, **environment, "PATH": f"{binaries}:{environment['PATH']}", "SBATCH_EXPORT": "ALL"}


def call(cluster: dict[str, str], directory: Path, *command: str | Path) -> str:
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=cluster, cwd=directory)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def wait(until: Callable[[], Any], seconds: float, every: float = 0.02) -> Any:
    end = time.monotonic() + seconds
    while not (found := until()):
        assert time.monotonic() < end, "timed out"
        time.sleep(every)
    return found


def numbers(run: Path) -> dict[str, tuple[str, str]]:
    """Return (job number, tasks) of the latest submission of each job, by name."""
    lines = (line.split("\t") for line in (run / "_slurm" / "jobs.tsv").read_text().splitlines())
    return {name: (number, tasks) for name, number, tasks in lines}


def status(cluster: dict[str, str], directory: Path) -> dict[str, Any]:
    report = json.loads(call(cluster, directory, "spo", "status", "runs/try", "--json"))
    assert report["problem"] is None
    return {stage["path"]: stage for stage in report["stages"]}


def process_at(part: Path) -> int:
    """Return the id of the process that writes a part, once one chunk is committed."""
    finished = part.with_name(f"{part.name[1:]}.parquet")
    wait(lambda: any(part.glob("chunk-*")) or finished.exists(), 600, 0.005)
    assert not finished.exists(), "the part was finished before the process could be interrupted"
    return int((part / "lock").read_text().rpartition(" ")[2])


def test_an_iteration_with_a_killed_and_a_requeued_task_matches_a_local_run(
    cluster: dict[str, str], policy: Path, tmp_path: Path
):
    (tmp_path / "recipe.toml").write_text(RECIPE)
    model = ("--run.model", policy)
    call(cluster, tmp_path, "spo", "slurm", "recipe.toml", *model, "--submit")
    run = tmp_path / "runs" / "try"
    trajectories, first = run / "000" / "trajectories", numbers(run)
    assert first.keys() == {f"{name}" for name in ("start-eval", *(f"000-{s}" for s in STAGES))}
    rollout = first["000-rollout"][0]

    victim = process_at(trajectories / ".part-00002-of-00003")
    os.kill(victim, signal.SIGKILL)
    process_at(trajectories / ".part-00001-of-00003")
    call(
        cluster, tmp_path, "scancel", "--signal=USR1", "--batch", f"{rollout}_1"
    )  # SLURM sends the same signal before the time limit

    def failed() -> dict[str, Any] | None:
        found = status(cluster, tmp_path)
        return found if found["000/trajectories"]["counts"]["failed"] else None

    found = wait(failed, 300, 1)["000/trajectories"]["parts"]
    assert found[2]["state"] == "failed"
    assert found[2]["job"] == f"{rollout}_2"
    assert f"job {rollout}_2: FAILED, NonZeroExitCode; " in found[2]["message"]
    assert found[1]["state"] in ("queued", "running")

    call(cluster, tmp_path, "spo", "slurm", "recipe.toml", *model, "--submit", "--only-missing")
    second = numbers(run)
    assert second["000-rollout"][1] == "2", "only the killed task is submitted again"
    assert second["start-eval"] == first["start-eval"]
    changed = {name for name in first if first[name] != second[name]}
    assert changed == {f"000-{stage}" for stage in STAGES}
    submit = (run / "_slurm" / "submit.sh").read_text()
    assert f"{rollout}_1" in submit.rpartition("segment_000=")[2], "the requeued task is a dependency"

    wait(lambda: status(cluster, tmp_path)["000/eval"]["counts"]["done"] == 4, 900, 3)
    done = status(cluster, tmp_path)
    assert {state for stage in done.values() for state, count in stage["counts"].items() if count} == {"done"}
    requeued = (run / "_slurm" / "logs" / f"000-rollout-{rollout}_1.log").read_text()
    assert "stopped by SIGUSR1" in requeued
    assert "part-00001-of-00003.parquet: resuming" in requeued
    again = (run / "_slurm" / "logs" / f"000-rollout-{second['000-rollout'][0]}_2.log").read_text()
    assert "part-00002-of-00003.parquet: resuming" in again

    local = iterate.Config(recipe=tmp_path / "recipe.toml", out=tmp_path / "local", overrides=(f"run.model={policy}",))
    iterate.run(local)
    for name in ("start/eval", *(f"000/{stage}" for stage in ("trajectories", "cutpoints", "advantages", "eval"))):
        assert len(rows(run / name)) > 0
        assert rows(run / name) == rows(tmp_path / "local" / name), name
    weights = [(out / "000" / "checkpoint" / "model.safetensors").read_bytes() for out in (run, tmp_path / "local")]
    assert weights[0] == weights[1]


STAGES = ("rollout", "segment", "estimate", "train", "eval")


def test_64_tasks_write_one_artefact_at_once(cluster: dict[str, str], policy: Path, tmp_path: Path):
    sample(tmp_path / "trajectories", policy, num_questions=64, num_generations=2, num_shards=64)
    script = tmp_path / "segment.sbatch"
    script.write_text(
        "#!/usr/bin/env bash\n#SBATCH --array=0-63 --output=%a.log\nexec spo segment trajectories --out cutpoints\n"
    )
    call(cluster, tmp_path, "sbatch", "--wait", script)
    cutpoints = open_artefact(tmp_path / "cutpoints")
    assert [(part.index, part.count) for part in cutpoints.parts] == [(index, 64) for index in range(64)]
    assert sorted(path.name for path in (tmp_path / "cutpoints").iterdir() if path.name.startswith(".")) == []
    cut(tmp_path / "alone", tmp_path / "trajectories")
    assert files(tmp_path / "cutpoints") == files(tmp_path / "alone")


PROGRAM = """
import os, signal, sys, time

def leave(number, frame):
    print("rank", os.environ["SLURM_PROCID"], "leaves", flush=True)
    sys.exit(4)

signal.signal(signal.SIGUSR1, leave)
print("rank", os.environ["SLURM_PROCID"], "of", os.environ["SLURM_NTASKS"], flush=True)
time.sleep(0 if "SLURM_RESTART_COUNT" in os.environ else 600)
print("rank", os.environ["SLURM_PROCID"], "is done", flush=True)
"""


def test_signaled_ranks_of_a_training_exit_and_the_job_is_requeued(cluster: dict[str, str], tmp_path: Path):
    """Run the script of a training job with two ranks, with a stub program in place of `spo`."""
    (tmp_path / "bin").mkdir()
    spo = tmp_path / "bin" / "spo"
    spo.write_text(f"#!{sys.executable}\n{PROGRAM}")
    spo.chmod(0o755)
    (tmp_path / "recipe.toml").write_text(
        RECIPE.replace("[eval]\nnum_questions = 8\n", "")
        + f'[slurm.train]\nranks = 2\nsetup = ["export PATH={tmp_path}/bin:$PATH"]\n'
    )
    call(cluster, tmp_path, "spo", "slurm", "recipe.toml", "--run.model", "model")
    folder = tmp_path / "runs" / "try" / "_slurm"
    number = call(cluster, tmp_path, "sbatch", "--parsable", folder / "000-train.sbatch").strip()
    log = folder / "logs" / f"000-train-{number}.log"
    wait(lambda: log.exists() and log.read_text().count(" of 2\n") == 2, 300)
    call(cluster, tmp_path, "scancel", "--signal=USR1", "--batch", number)
    wait(lambda: log.read_text().count("is done") == 2, 300, 0.5)
    assert sorted(line for line in log.read_text().splitlines() if line.endswith("leaves")) == [
        "rank 0 leaves",
        "rank 1 leaves",
    ]


def test_tasks_of_a_job_step_are_the_ranks_of_the_training(cluster: dict[str, str], chain: Path, tmp_path: Path):
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed (the extra `deepspeed`)")
    options = ("--samples-per-iteration", "6", "--out", tmp_path / "trained")
    launcher = ("srun", "--ntasks=2", "--kill-on-bad-exit=1", "bash", "-c", 'exec "$0" "$@" 2>&1')
    command = (*launcher, sys.executable, "-m", "spo_cli", "train", chain / "advantages", *options)
    output = call(cluster | {"TORCHDYNAMO_DISABLE": "1", "DS_ACCELERATOR": "cpu"}, tmp_path, *command)
    assert output.count("engine: deepspeed, ZeRO stage 2, 2 ranks on cpu") == 1
    assert output.count("spo train → ") == 1
    assert (tmp_path / "trained" / "model.safetensors").exists()


def test_a_canceled_job_is_not_requeued(cluster: dict[str, str], tmp_path: Path):
    (tmp_path / "recipe.toml").write_text(RECIPE)
    call(cluster, tmp_path, "spo", "slurm", "recipe.toml", "--run.model", "model")
    folder = tmp_path / "runs" / "try" / "_slurm"
    script = (folder / "000-segment.sbatch").read_text().partition("\nrun ")[0] + "\nrun sleep 600\n"
    (folder / "sleep.sbatch").write_text(script)
    number = call(cluster, tmp_path, "sbatch", "--parsable", folder / "sleep.sbatch").strip()
    state = ("squeue", "--noheader", "--states=all", f"--jobs={number}", "--format=%T")
    wait(lambda: call(cluster, tmp_path, *state).strip() == "RUNNING", 300, 0.3)
    call(cluster, tmp_path, "scancel", number)
    wait(lambda: call(cluster, tmp_path, *state).strip() == "CANCELLED", 300, 0.3)
    time.sleep(1)
    assert call(cluster, tmp_path, *state).strip() == "CANCELLED"
