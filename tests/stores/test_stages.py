"""Whole commands on a store: the chain of stages, the commands that read its artefacts, and killed commands."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import pytest

from spo_cli.app import main
from stages.core.errors import UserError
from stages.core.paths import as_path, cache_directory
from stages.core.store import StorePath
from stages.models import checkpoints, transfer
from stages.shards.origin import trace_back
from stages.shards.parts import open_artefact
from stages.shards.schemas import ADVANTAGES, TRAJECTORIES
from tests.stores.bucket import Bucket

ROOT = Path(__file__).resolve().parents[2]
TASK = ["--task", "arithmetic", "--task-arg", "operations=1", "--max-tokens", "24", "--threads", "1"]
SAMPLE = [*TASK, "--num-questions", "8", "--num-generations", "4", "--temperature", "0.8"]
ARTEFACTS = ("trajectories", "cutpoints", "advantages")

pytestmark = pytest.mark.xdist_group("stores")


def spo(*words: object) -> int:
    """Run a command in this process; return its exit code."""
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return int(end.value.code or 0)


def iterate(directory: str, model: str) -> None:
    """Run one iteration and its evaluation, a command per stage, with the questions in two parts."""
    for shard in ("0/2", "1/2"):
        assert spo("rollout", "--model", model, *SAMPLE, "--shard", shard, "--out", f"{directory}/trajectories") == 0
    assert spo("segment", f"{directory}/trajectories", "--interval", "2", "--out", f"{directory}/cutpoints") == 0
    assert (
        spo(
            "estimate",
            f"{directory}/cutpoints",
            "--rollouts",
            "3",
            "--threads",
            "1",
            "--out",
            f"{directory}/advantages",
        )
        == 0
    )
    train = ["--learning-rate", "1e-3", "--per-device-batch-size", "16", "--threads", "1"]
    assert spo("train", f"{directory}/advantages", *train, "--out", f"{directory}/checkpoint") == 0
    evaluation = ["--model", f"{directory}/checkpoint", *TASK, "--num-questions", "8", "--out", f"{directory}/eval"]
    assert spo("eval", *evaluation) == 0


@dataclass(frozen=True)
class Runs:
    """The same iteration in a bucket and on disk, from copies of one model."""

    bucket: Bucket
    stored: str
    local: str


@pytest.fixture(scope="module")
def runs(endpoint: str, policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    disk = tmp_path_factory.mktemp("runs")
    bucket = Bucket.make("spo-runs")
    for copy in (disk / "start", disk / "to-publish"):
        shutil.copytree(policy, copy)
    start = bucket.path("run/start")
    transfer.publish(disk / "to-publish", start)
    iterate(f"s3://{bucket.name}/run/000", str(start))
    iterate(str(disk / "000"), str(disk / "start"))
    return Runs(bucket, f"s3://{bucket.name}/run/000", str(disk / "000"))


@pytest.mark.parametrize("name", [*ARTEFACTS, "eval"])
def test_a_stage_writes_the_same_rows_to_a_store_and_to_a_disk(runs: Runs, name: str):
    stored, local = pandas.read_parquet(f"{runs.stored}/{name}"), pandas.read_parquet(f"{runs.local}/{name}")
    assert len(stored) > 0
    pandas.testing.assert_frame_equal(stored, local)


def test_training_from_a_store_gives_the_same_weights(runs: Runs):
    stored = checkpoints.resolve(f"{runs.stored}/checkpoint")
    assert checkpoints.digest(stored) == checkpoints.digest(Path(runs.local) / "checkpoint")
    found, expected = (
        json.loads((path / "spo.json").read_text()) for path in (stored, Path(runs.local) / "checkpoint")
    )
    assert found == expected, "the same lineage, with the same relative paths"


def test_no_object_is_left_beside_the_artefacts(runs: Runs):
    names = {name.removeprefix("run/000/") for name in runs.bucket.objects() if name.startswith("run/000/")}
    parts = {f"{name}/part-0000{i}-of-00002.parquet" for name in ARTEFACTS for i in (0, 1)}
    parts |= {"eval/part-00000-of-00001.parquet"}
    rest = {name for name in names - parts if not name.startswith(("_logs/", "checkpoint/"))}
    assert parts <= names
    assert rest == set()
    assert runs.bucket.uploads() == []


def test_lineage_is_relative_within_a_store_so_that_a_run_may_move(runs: Runs):
    for name in [name for name in runs.bucket.objects() if name.startswith("run/")]:
        source = {"Bucket": runs.bucket.name, "Key": name}
        runs.bucket.client.copy_object(Bucket=runs.bucket.name, Key=f"moved/{name}", CopySource=source)
    advantages = open_artefact(f"s3://{runs.bucket.name}/moved/run/000/advantages", ADVANTAGES)
    assert advantages.lineage
    assert [source.path for source in advantages.lineage.inputs[:2]] == ["../cutpoints", "../trajectories"]
    assert str(trace_back(advantages, TRAJECTORIES).path) == f"s3://{runs.bucket.name}/moved/run/000/trajectories"


def test_training_on_disk_reads_advantages_from_a_store(runs: Runs, tmp_path: Path):
    train = ["--learning-rate", "1e-3", "--per-device-batch-size", "16", "--threads", "1"]
    assert spo("train", f"{runs.stored}/advantages", *train, "--out", tmp_path / "checkpoint") == 0
    assert checkpoints.digest(tmp_path / "checkpoint") == checkpoints.digest(Path(runs.local) / "checkpoint")
    lineage = json.loads((tmp_path / "checkpoint" / "spo.json").read_text())
    assert lineage["inputs"][0]["path"] == f"{runs.stored}/advantages"


def test_a_second_call_finds_everything_up_to_date(runs: Runs, capsys: pytest.CaptureFixture[str]):
    before = runs.bucket.objects()
    iterate(runs.stored, f"s3://{runs.bucket.name}/run/start")
    assert capsys.readouterr().err.count("is up to date") >= 2 + 2 + 2 + 1 + 1
    after = runs.bucket.objects()
    assert {name: content for name, content in after.items() if "_logs" not in name} == {
        name: content for name, content in before.items() if "_logs" not in name
    }


def test_show_follows_the_lineage_of_an_artefact_in_a_store(runs: Runs, capsys: pytest.CaptureFixture[str]):
    assert spo("show", f"{runs.stored}/advantages") == 0
    shown = capsys.readouterr().out
    for name in ("advantages", "cutpoints", "trajectories"):
        assert f"{runs.stored}/{name}" in shown.replace("\n", "")
    assert "statistics of 2 parts" in shown
    assert spo("show", f"{runs.stored}/checkpoint") == 0
    assert "Qwen2ForCausalLM" in capsys.readouterr().out


def test_show_lists_the_state_of_a_run_in_a_store(runs: Runs, capsys: pytest.CaptureFixture[str]):
    half = as_path(f"s3://{runs.bucket.name}/half/000/cutpoints")
    (half / ".part-00000-of-00001" / "chunk-00000.parquet").write_bytes(b"")
    assert spo("show", f"s3://{runs.bucket.name}/run", "--files", "--json") == 0
    entries = {entry["path"]: entry for entry in json.loads(capsys.readouterr().out)}
    names = {*(f"000/{name}" for name in (*ARTEFACTS, "eval", "checkpoint")), "start"}
    assert entries.keys() == names
    assert {entry["state"] for entry in entries.values()} == {"complete"}
    assert spo("show", half.parent.parent, "--files", "--json") == 0
    (begun,) = json.loads(capsys.readouterr().out)
    assert begun["state"] == "partial"
    assert "only unfinished work" in begun["problem"]


def test_evaluations_in_a_store_are_compared_and_regraded(runs: Runs, capsys: pytest.CaptureFixture[str]):
    assert spo("eval", "--regrade", f"{runs.stored}/eval", "--out", f"{runs.stored}/again") == 0
    again = pandas.read_parquet(f"{runs.stored}/again")
    pandas.testing.assert_frame_equal(again, pandas.read_parquet(f"{runs.stored}/eval"))
    capsys.readouterr()
    assert spo("eval", "--compare", f"{runs.stored}/again", f"{runs.local}/eval", "--format", "json") == 0
    (found,) = json.loads(capsys.readouterr().out)["comparisons"]
    assert found["won"] == found["lost"] == 0
    assert spo("eval", "--table", f"stored={runs.stored}/eval", f"{runs.local}/eval", "--format", "markdown") == 0
    assert "stored" in capsys.readouterr().out


def test_a_model_is_fetched_once_and_its_optimizer_only_for_training(runs: Runs, endpoint: str):
    def bytes_sent() -> int:
        with urllib.request.urlopen(f"{endpoint}/bytes-sent") as answer:
            return int(answer.read())

    checkpoint = as_path(f"{runs.stored}/checkpoint")
    shutil.rmtree(cache_directory() / "models")
    before = bytes_sent()
    copy = checkpoints.resolve(str(checkpoint))
    fetched = bytes_sent() - before
    assert fetched > (copy / "model.safetensors").stat().st_size
    assert not (copy / "optimizer.state").exists()
    before = bytes_sent()
    assert checkpoints.resolve(str(checkpoint)) == copy
    assert bytes_sent() - before < 20_000, "only a listing is transferred"
    assert (checkpoints.resolve(str(checkpoint), whole=True) / "optimizer.state").is_file()
    assert transfer.origin(copy) == checkpoint


def test_an_interrupted_upload_of_a_model_is_incomplete_and_is_repeated(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    checkpoint = f"s3://{runs.bucket.name}/cut/checkpoint"
    command = ["train", f"{runs.stored}/advantages", "--learning-rate", "1e-3", "--per-device-batch-size", "16"]
    command += ["--threads", "1", "--out", checkpoint]
    upload = transfer._upload

    def fail_at_the_end(source: Path, target: StorePath) -> None:
        if target.name == "config.json":
            raise UserError("the store is gone")
        upload(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "_upload", fail_at_the_end)
        assert spo(*command) == 2
    assert "cut/checkpoint/model.safetensors" in runs.bucket.objects()
    with pytest.raises(UserError, match="only an incomplete one"):
        checkpoints.resolve(checkpoint)
    assert spo(*command) == 0
    assert checkpoints.digest(checkpoints.resolve(checkpoint)) == checkpoints.digest(Path(runs.local) / "checkpoint")


def test_a_directory_that_spo_did_not_write_is_not_replaced(runs: Runs, capsys: pytest.CaptureFixture[str]):
    runs.bucket.put("precious/data.bin", b"years of work")
    out = f"s3://{runs.bucket.name}/precious"
    assert spo("train", f"{runs.stored}/advantages", "--threads", "1", "--overwrite", "--out", out) == 2
    assert "is not a model directory made by spo" in " ".join(capsys.readouterr().err.split())
    assert runs.bucket.objects()["precious/data.bin"] == b"years of work"


def test_data_is_read_from_a_store(runs: Runs, tmp_path: Path):
    rows = pandas.DataFrame({"question": ["3B+5C", "2B+4C"], "answer": ["1", "2"]})
    rows.to_parquet(tmp_path / "train.parquet")
    rows.to_json(tmp_path / "test.jsonl", orient="records", lines=True)
    for name in ("train.parquet", "test.jsonl"):
        runs.bucket.put(f"data/{name}", (tmp_path / name).read_bytes())
    local, stored = tmp_path / "local", tmp_path / "stored"
    sample = ["--model", f"{runs.local}/checkpoint", "--task", "custom", "--max-tokens", "8", "--threads", "1"]
    for split in ("train", "test"):
        for out, data in ((local, str(tmp_path)), (stored, f"s3://{runs.bucket.name}/data")):
            assert spo("rollout", *sample, "--split", split, "--data", data, "--out", out / split) == 0
        pandas.testing.assert_frame_equal(pandas.read_parquet(local / split), pandas.read_parquet(stored / split))


def wait_until(condition: Callable[[], Any], seconds: float = 1200) -> None:
    """Wait until the condition holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the condition did not hold within {seconds} s"
        time.sleep(0.05)


def test_a_killed_stage_shows_no_partial_part_and_resumes(runs: Runs, capsys: pytest.CaptureFixture[str]):
    key = "run/killed/trajectories"
    command = ["rollout", "--model", f"s3://{runs.bucket.name}/run/start", *TASK, "--num-questions", "60"]
    command += ["--num-generations", "2", "--chunk-questions", "1", "--out", f"s3://{runs.bucket.name}/{key}"]

    def objects() -> list[str]:
        names = [name.removeprefix(f"{key}/") for name in runs.bucket.names(key)]
        return [name for name in names if not name.startswith("_logs/")]

    with subprocess.Popen([sys.executable, "-m", "spo_cli", *command], cwd=ROOT, stderr=subprocess.PIPE) as stage:
        wait_until(lambda: len(objects()) >= 2)
        stage.send_signal(signal.SIGKILL)
    left = objects()
    assert all(name.startswith(".part-00000-of-00001/chunk-") for name in left), "readers see no part"
    assert spo("segment", f"s3://{runs.bucket.name}/{key}", "--out", f"s3://{runs.bucket.name}/x") == 3
    capsys.readouterr()
    assert spo(*command) == 0
    assert f"resuming, {len(left)} of 60 chunks committed" in " ".join(capsys.readouterr().err.split())
    assert objects() == ["part-00000-of-00001.parquet"]
    rows = pandas.read_parquet(f"s3://{runs.bucket.name}/{key}")
    assert rows["trajectory_id"].is_unique
    assert len(rows) == 2 * 60


def test_spo_run_writes_into_a_store(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"""
        [run]
        out = "s3://{runs.bucket.name}/recipe"
        model = "s3://{runs.bucket.name}/run/start"
        iterations = 2
        task = "arithmetic"
        task_arg = ["operations=1"]
        max_tokens = 24
        threads = 1
        [rollout]
        num_questions = 4
        num_generations = 2
        [estimate]
        rollouts = 2
        [eval]
        num_questions = 4
        """
    )
    assert spo("run", recipe) == 0
    capsys.readouterr()
    assert spo("show", f"s3://{runs.bucket.name}/recipe", "--files", "--json") == 0
    entries = json.loads(capsys.readouterr().out)
    assert len(entries) == 2 * 4 + 2, "two iterations, and the evaluations of start and end"
    assert {entry["state"] for entry in entries} == {"complete"}
    assert spo("run", recipe) == 0
    assert spo("run", recipe, "--run.keep-checkpoints", "1") == 2
    assert "prunes local checkpoints only" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (["segment", "s3://spo-runs/nothing", "--out", "x"], 3, "s3://spo-runs/nothing does not exist"),
        (["segment", "http://host/x", "--out", "x"], 2, "expected a local path, s3://BUCKET/KEY or gs://BUCKET/KEY"),
        (["show", "s3://spo-runs/nothing"], 2, "s3://spo-runs/nothing does not exist"),
        (["show", "s3://no-such-bucket/x"], 2, "s3://no-such-bucket/x does not exist"),
        (["rollout", *SAMPLE, "--model", "s3://spo-runs/run", "--out", "x"], 2, "no model directory s3://spo-runs/run"),
        (["status", "s3://spo-runs/run"], 2, "expected a local run"),
    ],
)
def test_a_wrong_path_is_an_error_with_its_exit_code(
    runs: Runs, command: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    assert spo(*command) == code
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_store_that_cannot_be_written_is_an_error_before_work_begins(runs: Runs, capsys: pytest.CaptureFixture[str]):
    out = "s3://no-such-bucket/trajectories"
    assert spo("rollout", "--model", f"s3://{runs.bucket.name}/run/start", *SAMPLE, "--out", out) == 2
    assert "cannot be reached" in " ".join(capsys.readouterr().err.split())
