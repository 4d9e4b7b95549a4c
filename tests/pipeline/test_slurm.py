"""`spo slurm` without a cluster: job scripts equal to the stages of `spo run`, dependencies, and resubmission.

`tests/pipeline/test_slurm_cluster.py` tests against a real SLURM.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spo_cli.options import ConfigCommand
from stages.configs.resources import parse_time_limit
from stages.core.config import to_arguments
from stages.core.errors import UserError
from stages.pipeline import planning, slurm
from stages.slurm import queue as queues
from stages.slurm.jobs import Job
from stages.slurm.queue import JobQueue, JobTask
from stages.slurm.records import plan_text
from stages.slurm.scripts import REQUEUE
from tests.shards.samples import Notes, write_part

ROOT = Path(__file__).resolve().parents[2]
RECIPES = [path for path in sorted((ROOT / "examples").rglob("*.toml")) if path.parent.name != "compare"]
RECIPE = """
[run]
out = "runs/try"
iterations = 3
eval_every = 2
model = "start/model"
task = "arithmetic"

[rollout]
num_questions = 32

[train]
replay = 2

[eval]
num_questions = 8

[slurm]
num_shards = 4
partition = "gpu"
gpus = 1

[slurm.segment]
num_shards = 1
gpus = 0
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run each test in its own directory, with a recipe and without a cluster."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    monkeypatch.setattr(queues, "query_jobs", lambda jobs: JobQueue())
    monkeypatch.setattr(queues, "largest_array", lambda: None)
    return tmp_path


def write(*overrides: str, recipe: str | None = None, progress: Any = None, **options: Any) -> slurm.Outcome:
    if recipe is not None:
        Path("recipe.toml").write_text(recipe)
    return slurm.run(slurm.Config(recipe=Path("recipe.toml"), overrides=overrides, **options), progress or Notes())


def planned(path: Path) -> tuple[planning.Plan, list[Job]]:
    config = planning.Config(recipe=path)
    plan = planning.make_plan(config)
    return plan, slurm.plan_jobs(plan, planning.open_recipe(config))


def parse(config: Any) -> Any:
    """Return the Config parsed from the command line of the given one."""
    found = []
    words = [word for words in to_arguments(config) for word in words]
    ConfigCommand("verb", "", type(config), found.append).main(words, standalone_mode=False)
    (parsed,) = found
    return parsed


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name + "/" + path.name)
def test_the_commands_of_the_jobs_match_the_stages_of_spo_run(path: Path):
    plan, jobs = planned(path)
    steps = [*([plan.start] if plan.start else []), *([plan.evaluations[-1]] if -1 in plan.evaluations else [])]
    for number, iteration in enumerate(plan.iterations):
        steps += [iteration.rollout, iteration.segment, iteration.estimate, iteration.train]
        steps += [plan.evaluations[number]] if number in plan.evaluations else []
    assert len(jobs) == len(steps)
    for job, config in [*zip(jobs, steps, strict=True)][:12]:
        job_options = vars(parse(job.config))
        differ = {name for name, value in vars(config).items() if job_options[name] != value}
        assert differ <= {"shard", "num_shards", "shards_per_task"}
        assert (job_options["num_shards"] == job.work.num_shards) if job.work.is_array else not differ


def test_values_that_look_like_flags_survive_the_command_line():
    from stages import segment

    config = segment.Config(
        trajectories=Path("t"), out=Path("a b"), partition="delimiter", delimiter="-x $HOME '", overwrite=True
    )
    assert parse(config) == config


def dependencies(outcome: slurm.Outcome) -> dict[str, list[str]]:
    """Return the dependencies of each job in submit.sh, by job name: names of jobs, or numbers of submitted ones."""
    lines = re.findall(r'^(\w+)=\$\(submit (\S+) "(.*?)"', outcome.files["submit.sh"], re.MULTILINE)
    names = {variable: name for variable, name, _ in lines}
    return {name: [names.get(word[1:], word) for word in after.split(":") if word] for _, name, after in lines}


def test_every_job_depends_on_the_jobs_that_write_its_inputs():
    assert dependencies(write()) == {
        "start-eval": [],
        "000-rollout": [],
        "000-segment": ["000-rollout"],
        "000-estimate": ["000-segment"],
        "000-train": ["000-estimate"],
        "001-rollout": ["000-train"],
        "001-segment": ["001-rollout"],
        "001-estimate": ["001-segment", "000-train"],
        "001-train": ["000-estimate", "001-estimate", "000-train"],  # replay
        "001-eval": ["001-train"],
        "002-rollout": ["001-train"],
        "002-segment": ["002-rollout"],
        "002-estimate": ["002-segment", "001-train"],
        "002-train": ["001-estimate", "002-estimate", "001-train"],
        "002-eval": ["002-train"],
    }


def test_the_first_jobs_depend_on_the_warm_start():
    recipe = RECIPE.replace('model = "start/model"', "").replace("[rollout]", '[sft]\npreset = "tiny"\n[rollout]')
    found = dependencies(write(recipe=recipe, iterations=1))
    assert found["start-sft"] == []
    assert found["start-eval"] == found["000-rollout"] == ["start-sft"]


def directives(script: str) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, re.MULTILINE))


def test_a_script_contains_its_command_and_its_resource_requests():
    files = write('slurm.directives=["--exclusive"]', "slurm.time=2-0", "slurm.rollout.max_parallel=2").files
    rollout = files["000-rollout.sbatch"]
    assert directives(rollout) == {
        "job-name": "try-000-rollout",
        "chdir": str(Path.cwd()),
        "output": "runs/try/_slurm/logs/000-rollout-%A_%a.log",
        "open-mode": "append",
        "array": "0-3%2",
        "partition": "gpu",
        "time": "2-0",
        "gres": "gpu:1",
        "requeue": "",
        "signal": "B:USR1@120",
        "exclusive": "",
    }
    assert "\nrun spo rollout \\\n  --out runs/try/000/trajectories \\\n  --num-shards 4 \\\n" in rollout
    assert "# Iteration 000, rollout: runs/try/000/trajectories, 4 parts, 4 tasks." in rollout
    segment = directives(files["000-segment.sbatch"])
    assert "array" not in segment
    assert "gres" not in segment
    assert segment["output"].endswith("000-segment-%j.log")
    assert "--shard all" in files["000-segment.sbatch"], "array variables that the job inherits have no effect"
    for name, text in files.items():
        if name.endswith((".sbatch", ".sh")):
            subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_an_array_above_the_cluster_limit_is_rejected_with_the_shards_per_task_that_fit(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(queues, "largest_array", lambda: 10)
    many = ("slurm.num_shards=32",)
    with pytest.raises(UserError, match=r"start-eval has 32 tasks.* takes 10 .*shards_per_task = 4 in \[slurm.eval\]"):
        write(*many)
    files = write(*many, "slurm.shards_per_task=4").files
    assert directives(files["000-rollout.sbatch"])["array"] == "0-7"
    assert "--num-shards 32 \\\n  --shards-per-task 4" in files["000-rollout.sbatch"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("slurm.parttion=gpu", r"parttion in \[slurm\], which takes partition, account"),
        ("slurm.train.num_shards=2", r"num_shards in \[slurm.train\]"),
        ("slurm.rollout.ranks=2", r"ranks in \[slurm.rollout\]"),
        ("slurm.sft.ranks=2", r"ranks in \[slurm.sft\]"),
        ("slurm.tran.time=1", r"got 'slurm.tran.time=1'"),
        ("slurm.time=soon", r"\[slurm\] time must be minutes, H:M:S or D-H:M:S; got 'soon'"),
        ("slurm.time=2", r"time must be more than signal_seconds \+ 60 s, .* \(120\) .*got 2, which is 120 s"),
        ("slurm.time=3", r"up to 60 s earlier; got 3, which is 180 s"),
        ("slurm.rollout.num_shards=33", r"33 in \[slurm.rollout\].* more than the 32 questions"),
        ("slurm.estimate.num_shards=5", r"5 in \[slurm.estimate\].*and \[slurm.rollout\] makes 4"),
        ("slurm.train.ranks=0", r"ranks must be a multiple of nodes \(1\); got 0"),
        ("slurm.container_runtime=docker", "must be one of apptainer, singularity, pyxis"),
        ("rollout.num_shards=3", r"\[rollout\] must not set num_shards"),
    ],
)
def test_invalid_recipes_are_reported_before_anything_is_written(override: str, message: str):
    with pytest.raises(UserError, match=message):
        write(override)
    assert not Path("runs").exists()


def test_time_limits_are_parsed_in_every_form_of_sbatch():
    assert [parse_time_limit(time) for time in ("10", "1:30", "1:0:0", "2-3", "1-0:5", "1-1:1:1")] == [
        *(600, 90, 3600, 183600, 86700, 90061)
    ]


def test_a_dry_run_writes_nothing():
    outcome = write(dry_run=True)
    assert not Path("runs").exists()
    assert "000-rollout.sbatch" in outcome.files
    with pytest.raises(UserError, match="--dry-run and --submit exclude each other"):
        slurm.Config(recipe=Path("recipe.toml"), dry_run=True, submit=True)


def test_selected_iterations_require_the_artefacts_of_earlier_ones():
    with pytest.raises(UserError, match=r"001-rollout reads 000/checkpoint, which is missing.*include its iteration"):
        write(only_iterations="1-1")
    checkpoint = Path("runs/try/000/checkpoint")
    checkpoint.mkdir(parents=True)
    (checkpoint / "spo.json").touch()
    with pytest.raises(UserError, match="001-train reads 000/advantages"):
        write(only_iterations="1-1")
    make_parts("000/advantages", 4)
    outcome = write(only_iterations="1-1")
    assert list(dependencies(outcome)) == [
        f"001-{stage}" for stage in ("rollout", "segment", "estimate", "train", "eval")
    ]
    assert dependencies(outcome)["001-rollout"] == []
    assert not any(name.startswith(("000", "002", "start")) for name in outcome.files)
    with pytest.raises(UserError, match="FIRST-LAST"):
        write(only_iterations="1")
    for outside in ("1-0", "8-9"):
        with pytest.raises(UserError, match=f"some of this run's 3 iterations, counted from 0; got {outside}"):
            write(only_iterations=outside)


def make_parts(path: str, count: int, *missing: int) -> None:
    for index in set(range(count)) - {*missing}:
        write_part(Path("runs/try") / path, index, count)


def test_only_missing_tasks_and_their_dependents_are_submitted():
    write(iterations=1)
    make_parts("000/trajectories", 4, 1, 3)
    make_parts("start/eval", 4)
    outcome = write(iterations=1, only_missing=True)
    assert 'submit 000-rollout "" --array=1,3)' in outcome.files["submit.sh"]
    assert list(dependencies(outcome)) == [
        *("000-rollout", "000-segment", "000-estimate", "000-train", "000-eval"),
    ]
    everything = write(iterations=1)
    assert "start-eval" in dependencies(everything), "finished parts are skipped by the command itself"


def test_with_several_parts_per_task_only_tasks_with_a_missing_part_are_submitted():
    splits = ("slurm.rollout.num_shards=7", "slurm.rollout.shards_per_task=3", "slurm.estimate.num_shards=2")
    make_parts("000/trajectories", 7, 4)
    make_parts("000/cutpoints", 7)
    make_parts("000/advantages", 7, 6)
    outcome = write(*splits, iterations=1, only_missing=True)
    script = outcome.files["submit.sh"]
    assert 'submit 000-rollout "" --array=1)' in script
    assert 'submit 000-estimate "" --array=1)' in script, "the second task covers parts 3 to 6 of its input"
    assert "000-segment" not in dependencies(outcome)


def test_what_is_on_disk_in_another_number_of_parts_is_continued_there(here: Path):
    make_parts("start/eval", 1)
    make_parts("000/trajectories", 2)
    notes = Notes()
    jobs = write(iterations=2, progress=notes).submissions
    works = {one.job.work.name: (one.job.work.parts, one.job.work.num_shards) for one in jobs}
    assert (works["start-eval"], works["000-rollout"], works["000-segment"]) == ((1, 1), (2, 2), (2, 1))
    assert (works["000-estimate"], works["001-eval"]) == ((2, 2), (4, 4))
    assert works["001-rollout"] == (4, 4), "an output that is not on disk has as many parts as the recipe says"
    assert notes.lines[0].startswith("start/eval is divided into 1 on disk, not into 4 as num_shards says")

    outcome = write(iterations=1, only_missing=True)
    assert list(dependencies(outcome)) == ["000-segment", "000-estimate", "000-train", "000-eval"]
    assert dependencies(outcome)["000-segment"] == []
    (here / "runs/try/000/trajectories/part-00001-of-00002.parquet").unlink()
    script = write(iterations=1, only_missing=True).files["submit.sh"]
    assert 'submit 000-rollout "" --array=1)' in script


def test_committed_chunks_decide_the_number_of_parts_and_empty_directories_do_not(here: Path):
    unfinished = here / "runs/try/000/trajectories/.part-00000-of-00002"
    unfinished.mkdir(parents=True)
    (submission, *_) = [one for one in write(iterations=1).submissions if one.job.work.stage == "rollout"]
    assert submission.job.work.parts == 4, "no chunk was committed"
    (unfinished / "chunk-00000.parquet").touch()
    (submission, *_) = [one for one in write(iterations=1).submissions if one.job.work.stage == "rollout"]
    assert submission.job.work.parts == 2


def in_queue(monkeypatch: pytest.MonkeyPatch, *tasks: JobTask) -> None:
    monkeypatch.setattr(queues, "query_jobs", lambda jobs: JobQueue({(task.job, task.task): task for task in tasks}))


def submitted(*lines: str) -> None:
    folder = Path("runs/try/_slurm")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.tsv").write_text("".join(f"{line}\n" for line in lines))


def test_queued_tasks_are_kept_and_become_dependencies(monkeypatch: pytest.MonkeyPatch):
    submitted("000-rollout\t7\t", "000-segment\t8\t", "000-estimate\t9\t", "000-train\t10\t", "000-eval\t11\t")
    make_parts("start/eval", 4)
    make_parts("000/trajectories", 4, 1, 2, 3)
    in_queue(
        monkeypatch,
        JobTask("7", 0, "COMPLETED"),
        JobTask("7", 1, "RUNNING"),
        JobTask("7", 2, "FAILED", "OutOfMemory"),
        JobTask("7", 3, "PENDING", "BeginTime"),
        JobTask("8", None, "PENDING", "Dependency"),
        *(JobTask("9", task, "CANCELLED", "DependencyNeverSatisfied") for task in range(4)),
    )
    with pytest.raises(UserError, match="job 7_1: RUNNING; it is 000-rollout of this run"):
        write(iterations=1)
    outcome = write(iterations=1, only_missing=True)
    assert 'submit 000-rollout "" --array=2)' in outcome.files["submit.sh"]
    assert "scancel 8 # 000-segment waits for tasks that failed" in outcome.files["submit.sh"]
    assert dependencies(outcome)["000-segment"] == ["000-rollout", "7_1", "7_3"]
    assert dependencies(outcome)["000-estimate"] == ["000-segment"], "canceled jobs are not dependencies"


def test_nothing_is_submitted_when_every_task_is_done_or_queued(monkeypatch: pytest.MonkeyPatch):
    names = ("start-eval", "000-rollout", "000-segment", "000-estimate", "000-train", "000-eval")
    submitted(*(f"{name}\t{number}\t" for number, name in enumerate(names)))
    pending = [JobTask(str(number), None, "PENDING", "Dependency") for number in range(1, len(names))]
    in_queue(monkeypatch, JobTask("0", None, "RUNNING"), *pending)
    outcome = write(iterations=1, only_missing=True, submit=True)
    assert outcome.submissions == ()
    assert outcome.numbers == {}


def test_a_rejected_job_is_reported_and_earlier_submissions_are_recorded(monkeypatch: pytest.MonkeyPatch):
    programs({"sbatch": 'if [[ $* == *estimate* ]]; then echo "sbatch: error: QOSMaxSubmit" >&2; exit 1; fi; echo 5'})
    monkeypatch.setenv("PATH", f"{Path('bin').resolve()}:{os.environ['PATH']}")
    with pytest.raises(UserError, match=r"QOSMaxSubmit\); 3 are in the queue.*--only-missing"):
        write(iterations=1, submit=True)
    lines = Path("runs/try/_slurm/jobs.tsv").read_text().splitlines()
    assert lines == ["start-eval\t5\t", "000-rollout\t5\t", "000-segment\t5\t"]


def programs(bodies: dict[str, str]) -> None:
    """Write shell scripts to bin/, by program name."""
    Path("bin").mkdir()
    for name, body in bodies.items():
        (Path("bin") / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (Path("bin") / name).chmod(0o755)


@pytest.mark.parametrize(
    ("overrides", "launched"),
    [
        (("slurm.container=a b.sif",), "apptainer|exec|--nv|a b.sif|spo|"),
        (
            ("slurm.container=x.sif", "slurm.gpus=0", 'slurm.container_options=["--bind=/d"]'),
            "apptainer|exec|--bind=/d|x.sif|spo|",
        ),
        (
            (
                "slurm.container=x.sqsh",
                "slurm.container_runtime=pyxis",
                'slurm.container_options=["--container-mounts=/d"]',
            ),
            "srun|--container-image=x.sqsh|--container-mounts=/d|spo|",
        ),
        (
            ("slurm.train.ranks=4", "slurm.train.nodes=2", "slurm.container=x.sif", "slurm.cpus=8"),
            "srun|--kill-on-bad-exit=1|--cpus-per-task=8|apptainer|exec|--nv|x.sif|spo|",
        ),
    ],
)
def test_the_command_starts_in_its_container_and_launcher(overrides: tuple[str, ...], launched: str):
    """Run the script in bash, with programs that print their own command line."""
    print_call = 'printf "%s|" "$(basename "$0")" "$@"'
    programs(dict.fromkeys(("srun", "apptainer", "spo"), print_call))
    files = write(*overrides, 'slurm.setup=["export PATH=$PWD/bin:$PATH"]').files
    ended = subprocess.run(
        ["bash", "runs/try/_slurm/000-train.sbatch"],
        capture_output=True,
        text=True,
        env={**os.environ, "SLURM_JOB_ID": "12"},
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(launched + "train|runs/try/000/advantages|")
    found = directives(files["000-train.sbatch"])
    assert (found.get("nodes"), found.get("ntasks-per-node")) == (
        ("2", "2") if "ranks" in overrides[0] else (None, None)
    )


WORK = """
import os, signal, sys, time
signal.signal(signal.{name}, lambda number, frame: sys.exit({code}))
print("begun", flush=True)
time.sleep({seconds})
"""


@pytest.mark.parametrize(
    ("sent", "code", "variables", "requeued"),
    [
        ("USR1", 4, {}, "12"),
        ("USR1", 4, {"SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "2"}, "10_3"),
        ("USR1", 4, {"SLURM_RESTART_COUNT": "5"}, ""),  # max_requeues is reached
        ("USR1", 0, {}, ""),  # the command finished in time
        ("TERM", 4, {}, ""),  # a canceled job is not requeued
    ],
)
def test_a_signaled_task_is_requeued(sent: str, code: int, variables: dict[str, str], requeued: str):
    programs({"scontrol": 'echo "requeue: $2"'})
    Path("work.py").write_text(WORK.format(name=f"SIG{sent}", code=code, seconds=60))
    Path("requeue.sh").write_text(REQUEUE)
    script = f"set -e\nmax_requeues=5\nsource requeue.sh\nrun {sys.executable} work.py\n"
    process = subprocess.Popen(
        ["bash", "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PATH": f"{Path('bin').resolve()}:{os.environ['PATH']}", "SLURM_JOB_ID": "12"} | variables,
    )
    assert process.stdout
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.Signals[f"SIG{sent}"])
    rest, _ = process.communicate()
    assert rest == (f"requeue: {requeued}\n" if requeued else "")
    assert process.returncode == code


def test_a_task_signaled_during_its_setup_is_requeued():
    programs({"scontrol": 'echo "requeue: $2"'})
    script = f"set -e\nmax_requeues=1\n{REQUEUE}\nkill -USR1 $$\nrun echo begun"
    environment = {**os.environ, "PATH": f"{Path('bin').resolve()}:{os.environ['PATH']}", "SLURM_JOB_ID": "12"}
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment)
    assert (ended.stdout, ended.returncode) == ("requeue: 12\n", 4)
    ended = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env=environment | {"SLURM_RESTART_COUNT": "1"}
    )
    assert (ended.stdout, ended.returncode) == ("", 4)
    assert "not requeued: this was attempt 2, and max_requeues is 1" in ended.stderr


def test_jobs_submitted_from_a_job_do_not_inherit_its_array_variables(monkeypatch: pytest.MonkeyPatch):
    programs({"sbatch": 'env | grep ^SLURM_ >>"$LOG"; echo 5'})
    monkeypatch.setenv("PATH", f"{Path('bin').resolve()}:{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(Path("variables").resolve()))
    for name in ("ARRAY_JOB_ID", "ARRAY_TASK_ID", "STEP_NUM_TASKS", "RESTART_COUNT", "CONF"):
        monkeypatch.setenv(f"SLURM_{name}", "3")
    write(iterations=1, submit=True)
    assert set(Path("variables").read_text().splitlines()) == {"SLURM_CONF=3"}


def test_a_failing_command_fails_the_job():
    script = f"max_requeues=5\n{REQUEUE}\nrun bash -c 'exit 3'"
    assert subprocess.run(["bash", "-c", script]).returncode == 3


def test_reading_a_plan_returns_what_was_written():
    from stages.slurm.records import read_plan

    write()
    _, jobs = planned(Path("recipe.toml"))
    assert read_plan(Path("runs/try")) == tuple(job.work for job in jobs)
    assert Path("runs/try/_slurm/plan.json").read_text() == plan_text([job.work for job in jobs])
