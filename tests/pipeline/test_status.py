"""`spo status`: done, running, queued, failed and missing parts, by disk and SLURM, with their last log lines."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from spo_cli import status as status_command
from spo_cli.app import main
from stages.core.errors import UserError
from stages.pipeline import status
from stages.shards.disk import locked
from stages.shards.schemas import TRAJECTORIES
from stages.shards.writing import open_part
from stages.slurm import queue as queues
from stages.slurm.jobs import Work
from stages.slurm.queue import JobQueue, JobTask, query_jobs
from stages.slurm.records import plan_text
from stages.slurm.states import StageProgress
from tests.shards.samples import lineage, trajectories, write_part


def read_stages(run: Path) -> dict[str, StageProgress]:
    return {stage.work.output: stage for stage in status.run(status.Config(run=run)).stages}


def states(stage: StageProgress) -> str:
    """Return the first letter of the state of each part."""
    return "".join(part.state[0] for part in stage.parts)


def plan(run: Path, *works: Work) -> None:
    (run / "_slurm" / "logs").mkdir(parents=True)
    (run / "_slurm" / "plan.json").write_text(plan_text(works))


def submitted(run: Path, *lines: str) -> None:
    (run / "_slurm" / "jobs.tsv").write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture(scope="module")
def dead_process() -> int:
    """Return a process id that cannot exist: Linux assigns none above 2²²."""
    return 2**30


def fail(directory: Path, index: int, count: int, process: int) -> None:
    """Write a part whose process failed after one chunk."""

    def work() -> None:
        with open_part(directory, index, count, lineage(), TRAJECTORIES) as part:
            first, *_ = part.missing(["rows 0-5", "rows 5-10"])
            part.commit(first, trajectories(5))
            raise RuntimeError("CUDA out of memory")

    with pytest.raises(RuntimeError):
        work()
    lock = directory / f".part-{index:05d}-of-{count:05d}" / "lock"
    lock.write_text(f"{os.uname().nodename}, process {process}")


def in_queue(monkeypatch: pytest.MonkeyPatch, *tasks: JobTask) -> None:
    monkeypatch.setattr(queues, "query_jobs", lambda jobs: JobQueue({(task.job, task.task): task for task in tasks}))


def test_a_local_run_is_reported_from_its_files(tmp_path: Path, dead_process: int):
    directory = tmp_path / "000" / "trajectories"
    write_part(directory, 0, 4)
    fail(directory, 1, 4, dead_process)
    with locked(directory / ".part-00002-of-00004"):  # this process holds the lock, so the part counts as running
        (tmp_path / "000" / "_logs" / "trajectories" / "part-00002-of-00004.log").write_text(
            "2026-01-01T00:00:00+00:00 started\n2026-01-01T00:00:01+00:00 chunk 1 of 9: 5 rows\n"
        )
        (tmp_path / "000" / ".checkpoint.partial").mkdir()
        (tmp_path / "000" / ".checkpoint.partial" / "metrics.jsonl").write_text("{}\n{}\n")
        (tmp_path / "start" / "checkpoint").mkdir(parents=True)
        (tmp_path / "start" / "checkpoint" / "spo.json").touch()
        found = read_stages(tmp_path)
    assert list(found) == ["start/checkpoint", "000/trajectories", "000/checkpoint"]
    assert states(found["start/checkpoint"]) == "d"
    parts = found["000/trajectories"]
    assert states(parts) == "dfrm"
    assert parts.parts[1].message == "failed: RuntimeError: CUDA out of memory"
    assert parts.parts[2].message.startswith(f"chunk 1 of 9: 5 rows (process {os.getpid()}, ")
    assert found["000/checkpoint"].parts[0].state == "failed"
    assert found["000/checkpoint"].parts[0].message == "step 2"


def test_a_killed_process_counts_as_failed_and_one_on_another_host_as_running(tmp_path: Path, dead_process: int):
    for index, holder in enumerate((f"{os.uname().nodename}, process {dead_process}", "elsewhere, process 7")):
        part = tmp_path / "000" / "trajectories" / f".part-{index:05d}-of-00002"
        part.mkdir(parents=True)
        (part / "lock").write_text(holder)
    found = read_stages(tmp_path)["000/trajectories"]
    assert states(found) == "fr"
    assert found.parts[1].message == "(process 7 on elsewhere, which cannot be checked from here)"


def test_the_state_of_a_task_in_slurm_takes_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plan(tmp_path, Work("000", "rollout", 7, 7), Work("000", "segment", 7, 2), Work("000", "train"))
    write_part(tmp_path / "000" / "trajectories", 0, 7)
    submitted(tmp_path, "000-rollout\t7\t", "000-segment\t8\t", "000-train\t9\t", "000-rollout\t11\t2,5-6%4")
    logs = tmp_path / "_slurm" / "logs"
    (logs / "000-rollout-7_1.log").write_text("Loading\n\nspo rollout: no room to write\n\n")
    (logs / "000-rollout-11_2.log").write_text("rollout: 12 % · 3/24 responses\n", encoding="utf-8")
    in_queue(
        monkeypatch,
        JobTask("7", 0, "COMPLETED"),
        JobTask("7", 1, "FAILED", "NonZeroExitCode"),
        JobTask("7", 2, "FAILED", "NonZeroExitCode"),  # resubmitted as job 11
        JobTask("11", 2, "RUNNING"),
        JobTask("7", 3, "PENDING", "BeginTime"),
        JobTask("7", 4, "CANCELLED"),
        JobTask("11", 5, "COMPLETED"),  # but its part was deleted
        JobTask("11", 6, "TIMEOUT", "TimeLimit"),
        JobTask("8", 0, "RUNNING"),
        JobTask("8", 1, "CANCELLED", "DependencyNeverSatisfied"),
        JobTask("9", None, "OUT_OF_MEMORY", "OutOfMemory"),
    )
    found = read_stages(tmp_path)
    rollout = found["000/trajectories"]
    assert states(rollout) == "dfrqmmf"
    assert rollout.parts[1].message == "job 7_1: FAILED, NonZeroExitCode; spo rollout: no room to write"
    assert rollout.parts[2].message == "rollout: 12 % · 3/24 responses"
    assert rollout.parts[3].message == "job 7_3: PENDING, BeginTime"
    assert rollout.parts[6].message == "job 11_6: TIMEOUT, TimeLimit"
    assert rollout.tasks_in("failed", "missing") == (1, 4, 5, 6)
    segment = found["000/cutpoints"]
    assert states(segment) == "qqqmmmm", "the running task has three parts and has begun none of them"
    assert found["000/checkpoint"].parts[0].state == "failed"


def test_the_printed_and_the_json_report(
    tmp_path: Path, dead_process: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    run = Path("demo")  # relative, so that the output does not depend on the temporary directory
    iterations = [f"{number:03d}" for number in range(6)]
    plan(run, *(Work(name, "rollout", 2, 2) for name in iterations))
    for name in iterations[:3]:
        for index in range(2):
            write_part(run / name / "trajectories", index, 2)
    fail(run / "003" / "trajectories", 1, 2, dead_process)
    status_command.report(status_command.run(status_command.Config(run=run)))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "demo 6 done, 1 failed, 5 missing, of 12 parts and models",
        "iteration stage done running queued failed missing parts",
        "000–002 all stages 6 · · · · 6",
        "003 rollout · · · 1 1 2",
        "004–005 all stages · · · · 4 4",
        "003/trajectories part 1 failed: failed: RuntimeError: CUDA out of memory · reward 0.4 so far",
    ]
    status_command.report(status_command.run(status_command.Config(run=run, json=True)))
    report = json.loads(capsys.readouterr().out)
    assert report["stages"][3]["counts"] == {"done": 0, "running": 0, "queued": 0, "failed": 1, "missing": 1}
    assert report["stages"][3]["parts"][1]["state"] == "failed"


def test_a_directory_that_is_not_a_run_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(UserError, match="is not a directory"):
        read_stages(tmp_path / "nothing")
    with pytest.raises(SystemExit) as exited:
        main(["status", str(tmp_path)])
    assert exited.value.code == 2
    assert "holds no artefact of a run" in capsys.readouterr().err
    plan(tmp_path)
    (tmp_path / "_slurm" / "plan.json").write_text("{")
    with pytest.raises(UserError, match=r"plan.json is not JSON"):
        read_stages(tmp_path)
    (tmp_path / "_slurm" / "plan.json").unlink()
    submitted(tmp_path, "000-rollout 7")
    with pytest.raises(UserError, match=r"cannot read .*jobs.tsv .*expected name, number and tasks"):
        read_stages(tmp_path)


def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **bodies: str) -> None:
    """Put shell scripts on the path in place of SLURM's programs."""
    for name, body in bodies.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def test_jobs_missing_from_squeue_are_read_from_sacct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    programs(
        tmp_path,
        monkeypatch,
        squeue='echo "12|0|RUNNING|None"; echo "12|1|PENDING|Resources"; echo "13|N/A|FAILED|NonZeroExitCode"',
        sacct='case "$*" in *--jobs=9\\ *) printf "9_0|COMPLETED\\n9_3|CANCELLED by 1000\\n9_[4-6]|PENDING\\n";; esac',
    )
    found = query_jobs(["9", "12", "13"])
    assert found.problem is None
    assert {task.name: task.state for task in found.tasks.values()} == {
        "12_0": "RUNNING",
        "12_1": "PENDING",
        "13": "FAILED",
        "9_0": "COMPLETED",
        "9_3": "CANCELLED",
    }
    assert (found.find("12", 1), found.find("13", 0)) == (found.tasks["12", 1], found.tasks["13", None])
    assert found.tasks["12", 1].reason == "Resources"
    assert found.find("9", 5) is None


@pytest.mark.parametrize(
    ("squeue", "problem"),
    [
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", "Unable to contact"),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", None),
    ],
)
def test_an_unreachable_slurm_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, squeue: str, problem: str | None
):
    programs(tmp_path, monkeypatch, squeue=squeue, sacct="echo 'Slurm accounting storage is disabled' >&2; exit 1")
    found = query_jobs(["5"])
    assert found.tasks == {}
    assert (problem in (found.problem or "")) if problem else found.problem is None


def test_without_slurm_its_absence_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert query_jobs([]).problem is None, "without jobs, SLURM is not queried"
    assert "squeue is not on this machine" in (query_jobs(["5"]).problem or "")
    assert queues.largest_array() is None


def test_the_message_is_the_last_line_of_the_latest_log(
    tmp_path: Path, dead_process: int, monkeypatch: pytest.MonkeyPatch
):
    plan(tmp_path, Work("000", "rollout", 2, 2))
    submitted(tmp_path, "000-rollout\t7\t")
    in_queue(monkeypatch, JobTask("7", 0, "RUNNING"))
    fail(tmp_path / "000" / "trajectories", 0, 2, dead_process)
    log = tmp_path / "_slurm" / "logs" / "000-rollout-7_0.log"
    log.write_text("x" * 10_000 + "\nrollout: 50 %\n")
    for age, message in ((0, "rollout: 50 %"), (3600, "failed: RuntimeError: CUDA out of memory")):
        os.utime(log, (time.time() + 1 - age, time.time() + 1 - age))
        assert read_stages(tmp_path)["000/trajectories"].parts[0].message == message
