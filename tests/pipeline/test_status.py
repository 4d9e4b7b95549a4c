"""`spo status`: what is done, running, queued, failed and missing, by the disk and by what SLURM says; last words."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from spo_cli import status as shown
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


def look(run: Path) -> dict[str, StageProgress]:
    return {stage.work.output: stage for stage in status.run(status.Config(run=run)).stages}


def states(stage: StageProgress) -> str:
    """A letter for each part."""
    return "".join(piece.state[0] for piece in stage.parts)


def plan(run: Path, *works: Work) -> None:
    (run / "_slurm" / "logs").mkdir(parents=True)
    (run / "_slurm" / "plan.json").write_text(plan_text(works))


def submitted(run: Path, *lines: str) -> None:
    (run / "_slurm" / "jobs.tsv").write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture(scope="module")
def dead() -> int:
    """A number that no process has: kernels give none above 2²²."""
    return 2**30


def fail(directory: Path, index: int, count: int, process: int) -> None:
    """A part whose process was ended by an error after one chunk."""

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


def test_a_local_run_is_shown_as_far_as_it_lies_there(tmp_path: Path, dead: int):
    directory = tmp_path / "000" / "trajectories"
    write_part(directory, 0, 4)
    fail(directory, 1, 4, dead)
    with locked(directory / ".part-00002-of-00004"):  # this process is at it
        (directory / "_logs" / "part-00002-of-00004.log").write_text(
            "2026-01-01T00:00:00+00:00 started\n2026-01-01T00:00:01+00:00 chunk 1 of 9: 5 rows\n"
        )
        (tmp_path / "000" / ".checkpoint.partial").mkdir()
        (tmp_path / "000" / ".checkpoint.partial" / "metrics.jsonl").write_text("{}\n{}\n")
        (tmp_path / "start" / "checkpoint").mkdir(parents=True)
        (tmp_path / "start" / "checkpoint" / "spo.json").touch()
        found = look(tmp_path)
    assert list(found) == ["start/checkpoint", "000/trajectories", "000/checkpoint"]
    assert states(found["start/checkpoint"]) == "d"
    parts = found["000/trajectories"]
    assert states(parts) == "dfrm"
    assert parts.parts[1].message == "failed: RuntimeError: CUDA out of memory"
    assert parts.parts[2].message.startswith(f"chunk 1 of 9: 5 rows (process {os.getpid()}, ")
    assert found["000/checkpoint"].parts[0].state == "failed"
    assert found["000/checkpoint"].parts[0].message == "step 2"


def test_a_killed_process_is_no_longer_at_work_and_one_elsewhere_cannot_be_asked(tmp_path: Path, dead: int):
    for index, holder in enumerate((f"{os.uname().nodename}, process {dead}", "elsewhere, process 7")):
        part = tmp_path / "000" / "trajectories" / f".part-{index:05d}-of-00002"
        part.mkdir(parents=True)
        (part / "lock").write_text(holder)
    found = look(tmp_path)["000/trajectories"]
    assert states(found) == "fr"
    assert found.parts[1].message == "(process 7 on elsewhere, which cannot be checked from here)"


def test_what_slurm_says_of_a_task_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
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
        JobTask("7", 2, "FAILED", "NonZeroExitCode"),  # another was submitted since
        JobTask("11", 2, "RUNNING"),
        JobTask("7", 3, "PENDING", "BeginTime"),
        JobTask("7", 4, "CANCELLED"),
        JobTask("11", 5, "COMPLETED"),  # and its part was deleted
        JobTask("11", 6, "TIMEOUT", "TimeLimit"),
        JobTask("8", 0, "RUNNING"),
        JobTask("8", 1, "CANCELLED", "DependencyNeverSatisfied"),
        JobTask("9", None, "OUT_OF_MEMORY", "OutOfMemory"),
    )
    found = look(tmp_path)
    rollout = found["000/trajectories"]
    assert states(rollout) == "dfrqmmf"
    assert rollout.parts[1].message == "job 7_1: FAILED, NonZeroExitCode; spo rollout: no room to write"
    assert rollout.parts[2].message == "rollout: 12 % · 3/24 responses"
    assert rollout.parts[3].message == "job 7_3: PENDING, BeginTime"
    assert rollout.parts[6].message == "job 11_6: TIMEOUT, TimeLimit"
    assert rollout.tasks_in("failed", "missing") == (1, 4, 5, 6)
    segment = found["000/cutpoints"]
    assert states(segment) == "qqqmmmm", "of the three parts of a task that runs, none is begun"
    assert found["000/checkpoint"].parts[0].state == "failed"


def test_what_it_prints(tmp_path: Path, dead: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    run = Path("demo")  # short, wherever temporary directories are
    iterations = [f"{number:03d}" for number in range(6)]
    plan(run, *(Work(name, "rollout", 2, 2) for name in iterations))
    for name in iterations[:3]:
        for index in range(2):
            write_part(run / name / "trajectories", index, 2)
    fail(run / "003" / "trajectories", 1, 2, dead)
    shown.report(shown.run(shown.Config(run=run)))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "demo 6 done, 1 failed, 5 missing, of 12 parts and models",
        "iteration stage done running queued failed missing parts",
        "000–002 all stages 6 · · · · 6",
        "003 rollout · · · 1 1 2",
        "004–005 all stages · · · · 4 4",
        "003/trajectories part 1 failed: failed: RuntimeError: CUDA out of memory",
    ]
    shown.report(shown.run(shown.Config(run=run, json=True)))
    told = json.loads(capsys.readouterr().out)
    assert told["stages"][3]["counts"] == {"done": 0, "running": 0, "queued": 0, "failed": 1, "missing": 1}
    assert told["stages"][3]["parts"][1]["state"] == "failed"


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(UserError, match="is no directory"):
        look(tmp_path / "nothing")
    with pytest.raises(SystemExit) as left:
        main(["status", str(tmp_path)])
    assert left.value.code == 2
    assert "holds no artefact of a run" in capsys.readouterr().err
    plan(tmp_path)
    (tmp_path / "_slurm" / "plan.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*plan.json"):
        look(tmp_path)
    (tmp_path / "_slurm" / "plan.json").unlink()
    submitted(tmp_path, "000-rollout 7")
    with pytest.raises(UserError, match=r"cannot read .*jobs.tsv .*expected name, number and tasks"):
        look(tmp_path)


def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **bodies: str) -> None:
    """SLURM's programs, as lines of shell."""
    for name, body in bodies.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def test_jobs_that_squeue_has_forgotten_are_asked_of_sacct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
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


def test_a_machine_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert query_jobs([]).problem is None, "no job, no question"
    assert "squeue is not on this machine" in (query_jobs(["5"]).problem or "")
    assert queues.largest_array() is None


def test_the_last_line_of_the_log_that_was_written_last(tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch):
    plan(tmp_path, Work("000", "rollout", 2, 2))
    submitted(tmp_path, "000-rollout\t7\t")
    in_queue(monkeypatch, JobTask("7", 0, "RUNNING"))
    fail(tmp_path / "000" / "trajectories", 0, 2, dead)
    log = tmp_path / "_slurm" / "logs" / "000-rollout-7_0.log"
    log.write_text("x" * 10_000 + "\nrollout: 50 %\n")
    for age, told in ((0, "rollout: 50 %"), (3600, "failed: RuntimeError: CUDA out of memory")):
        os.utime(log, (time.time() + 1 - age, time.time() + 1 - age))
        assert look(tmp_path)["000/trajectories"].parts[0].message == told
