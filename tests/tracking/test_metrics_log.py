"""The metrics of a run: one JSONL file, and trackers that show each entry once.

The files of the trackers are read with the packages that define their formats.
"""

from __future__ import annotations

import json
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stages import evaluate, sft, train
from stages.core.errors import UserError
from stages.pipeline import iterate
from stages.tracking.metrics_log import MetricsLog, open_stage_log
from tests.chains import ARITHMETIC
from tests.command_server import Commands
from tests.recipes import small_recipe, write_recipe
from tests.shards.samples import Notes

RECIPE = small_recipe(
    run={"eval_every": 1},
    sft={"preset": "tiny", "steps": 3, "save_steps": 1, "per_device_batch_size": 8},
    train={"per_device_batch_size": 2, "gradient_accumulation_steps": 1, "epochs": 2, "save_steps": 2},
)
STEPS = 6  # 6 responses, 2 a step, 2 epochs


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path, RECIPE)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Return the real package without credentials; `teardown` makes it read the environment again."""
    package = pytest.importorskip("wandb", reason="wandb is not installed (the extra `wandb`)")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    package.teardown()
    yield package
    package.teardown()


@pytest.fixture
def offline(wandb: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("WANDB_MODE", "offline")
    return wandb


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


CLOCK = {"time"} | {f"{stage}/{name}" for stage in ("sft", "train") for name in ("step_time", "tokens_per_second")}
"""Values that differ between two runs of the same work."""


def without_times(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in entry.items() if k not in CLOCK} for entry in entries]


def series(entries: list[dict[str, Any]], tag: str) -> list[tuple[int, float]]:
    return [(entry["step"], entry[tag]) for entry in entries if tag in entry]


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """Return all points of all event files by tag, including those that TensorBoard would discard."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(directory.glob("*tfevents*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.tensor.float_val[0]))
    return found


def shown(directory: Path, tag: str) -> list[tuple[int, float]]:
    """Return the points that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(directory))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def history(directory: Path) -> list[dict[str, Any]]:
    """Return the history in the file of an offline run: blocks of 32 KiB: CRC (4), length (2), kind (1), content."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    (path,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    data, place, content, found = path.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        content += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a complete record, or the last fragment of one
            record = Record.FromString(content)
            content = b""
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                found.append(
                    {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in items}
                    | {"number": record.history.step.num}
                )
    return found


def close_to(points: list[tuple[int, float]]) -> list[tuple[int, Any]]:
    return [(step, pytest.approx(value, rel=1e-6)) for step, value in points]


def open_log(directory: Path, *trackers: str) -> MetricsLog:
    return MetricsLog(directory, directory.parent, trackers, "title", {}, Notes())


def test_a_resumed_series_has_each_step_once_with_the_values_of_its_last_run(tmp_path: Path):
    logs = tmp_path / "_logs"
    steps = [{"step": i, "loss": 1.0 / i} for i in range(1, 7)]
    with open_log(logs, "tensorboard") as metrics_log:  # killed two steps after its checkpoint
        opened = metrics_log.open_series("train", tmp_path / "a", "work", [])
        for line in steps[:4]:
            opened.log(line)
    again = [{**line, "loss": line["loss"] + 1} for line in steps]
    with open_log(logs, "tensorboard") as metrics_log:
        opened = metrics_log.open_series("train", tmp_path / "a", "work", steps[:2])
        for line in again[2:]:
            opened.log(line)
    expected = [(line["step"], line["loss"]) for line in [*steps[:2], *again[2:]]]
    assert series(lines(logs), "train/loss") == expected
    assert scalars(logs / "tensorboard") == {"train/loss": close_to(expected)}
    assert shown(logs / "tensorboard", "train/loss") == close_to(expected)


def test_a_line_that_a_crash_truncated_is_written_again(tmp_path: Path):
    steps = [{"step": i, "loss": float(i)} for i in range(1, 4)]
    with open_log(tmp_path / "_logs") as metrics_log:
        metrics_log.open_series("train", tmp_path / "a", "work", steps)
    path = tmp_path / "_logs" / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    with open_log(tmp_path / "_logs") as metrics_log:
        metrics_log.open_series("train", tmp_path / "a", "work", steps)
    assert series(lines(tmp_path / "_logs"), "train/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_tracker_that_is_added_later_shows_all_entries(tmp_path: Path):
    logs, steps = tmp_path / "_logs", [{"step": i, "loss": float(i)} for i in range(1, 4)]
    with open_log(logs) as metrics_log:
        metrics_log.open_series("train", tmp_path / "a", "work", steps)
    assert not (logs / "tensorboard").exists()
    with open_log(logs, "tensorboard") as metrics_log:
        metrics_log.open_series("train", tmp_path / "a", "work", steps)
    assert scalars(logs / "tensorboard") == {"train/loss": [(1, 1.0), (2, 2.0), (3, 3.0)]}
    written = {path: path.stat().st_mtime_ns for path in (logs / "tensorboard").iterdir()}
    with open_log(logs, "tensorboard") as metrics_log:
        metrics_log.open_series("train", tmp_path / "a", "work", steps)
    assert {path: path.stat().st_mtime_ns for path in (logs / "tensorboard").iterdir()} == written, (
        "the tracker is complete"
    )


def test_two_processes_cannot_write_the_metrics_of_one_run(tmp_path: Path):
    with open_log(tmp_path / "_logs"), pytest.raises(UserError, match="another process"), open_log(tmp_path / "_logs"):
        pass


def test_values_that_are_not_finite_are_left_out(tmp_path: Path):
    with open_log(tmp_path / "_logs") as metrics_log:
        metrics_log.log_figures("eval", tmp_path / "eval", {"avg@1": 0.5, "avg@1 standard error": float("nan")})
    (entry,) = lines(tmp_path / "_logs")
    assert "eval/avg@1" in entry
    assert "eval/avg@1 standard error" not in entry


def test_a_missing_package_is_reported_before_any_work(policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = sft.Config(out=tmp_path / "m", preset="tiny", steps=1, report_to=("tensorboard",), **ARITHMETIC)
    with pytest.raises(UserError, match=r"--report-to tensorboard .* pip install 'spo-cli\[tensorboard\]'"):
        sft.run(config)
    config = evaluate.Config(model=str(policy), out=tmp_path / "e", report_to=("wandb",), **EVALUATION)
    with pytest.raises(UserError, match=r"pip install 'spo-cli\[wandb\]'"):
        evaluate.run(config)
    assert not any(tmp_path.iterdir())


EVALUATION: dict[str, Any] = {"task": ("arithmetic",), "task_arg": ("operations=1",), "max_tokens": (16,), "threads": 1}


@pytest.mark.usefixtures("wandb")
def test_missing_credentials_for_weights_and_biases_are_reported_before_any_work(recipe: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"--report-to wandb: .*WANDB_MODE=offline"):
        iterate.run(iterate.Config(recipe=recipe, out=tmp_path / "run", report_to=("wandb",)))
    assert not (tmp_path / "run").exists()


def test_only_the_first_rank_writes_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    with open_stage_log(tmp_path / "model", ("tensorboard",), {}, Notes()) as metrics_log:
        assert metrics_log is None
    assert not any(tmp_path.iterdir())


def test_a_single_stage_keeps_its_metrics_next_to_its_output(chain: Path, tmp_path: Path):
    options = {"per_device_batch_size": 8, "gradient_accumulation_steps": 2, "threads": 1, "learning_rate": 1e-4}
    train.run(
        train.Config(advantages=(chain / "advantages",), out=tmp_path / "model", report_to=("tensorboard",), **options)
    )
    own = [json.loads(line) for line in (tmp_path / "model" / "metrics.jsonl").read_text().splitlines()]
    points = scalars(tmp_path / "_logs" / "model" / "tensorboard")
    assert set(points) == {f"train/{name}" for line in own for name in line if name != "step"}
    for name in ("loss", "reward", "grad_norm"):
        assert points[f"train/{name}"] == close_to([(int(line["step"]), line[name]) for line in own])


def test_an_evaluation_in_shards_is_recorded_when_all_parts_exist(policy: Path, tmp_path: Path):
    for shard in ("0/2", "1/2"):
        assert not (tmp_path / "_logs" / "eval" / "metrics.jsonl").exists()
        options = {"num_questions": 4, "shard": shard, "report_to": ("tensorboard",), **EVALUATION}
        evaluate.run(evaluate.Config(model=str(policy), out=tmp_path / "eval", **options))
    (entry,) = lines(tmp_path / "_logs" / "eval")
    assert 0 <= entry["eval/avg@1"] <= 1
    assert scalars(tmp_path / "_logs" / "eval" / "tensorboard")["eval/avg_at_1"] == close_to([(0, entry["eval/avg@1"])])


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_the_stages_of_a_run_share_one_log_and_a_kill_neither_repeats_nor_loses_a_step(
    recipe: Path, spo: Commands, tmp_path: Path
):
    def command(out: str) -> list[str | Path]:
        return ["run", recipe, "--out", tmp_path / out, "--report-to", "tensorboard", "wandb"]

    offline = {"WANDB_MODE": "offline"}
    uninterrupted = spo.finish(*command("uninterrupted"), variables=offline)
    expected = lines(tmp_path / "uninterrupted" / "_logs")
    kills, identities = 0, set[str]()
    for fraction in (0.2, 0.25, 0.3, 0.4, 0.5):
        killed = spo.run(*command("killed"), seconds=uninterrupted.seconds * fraction, variables=offline)
        kills += killed.code == -signal.SIGPROF
        assert killed.code in (-signal.SIGPROF, 0), killed.stderr
        state = tmp_path / "killed" / "_logs" / "mirrors.json"
        identities |= {json.loads(state.read_text())["identity"]} if state.exists() else set()
    assert kills >= 2
    spo.finish(*command("killed"), variables=offline)
    logs = tmp_path / "killed" / "_logs"
    entries = lines(logs)
    assert without_times(entries) == without_times(expected)
    assert identities == {json.loads((logs / "mirrors.json").read_text())["identity"]}

    steps = [step for step, _ in series(entries, "train/loss")]
    assert steps == [*range(1, 2 * STEPS + 1)], "one axis over the iterations"
    assert [step for step, _ in series(entries, "sft/loss")] == [1, 2, 3]
    assert [step for step, _ in series(entries, "eval/avg@1")] == [0, STEPS, 2 * STEPS]
    assert [step for step, _ in series(entries, "rollout/reward")] == [0, STEPS]
    assert scalars(logs / "tensorboard")["train/loss"] == close_to(series(entries, "train/loss"))
    assert shown(logs / "tensorboard", "eval/avg_at_1") == close_to(series(entries, "eval/avg@1"))

    recorded = history(logs)
    assert [line["number"] for line in recorded] == [*range(len(entries))]
    pairs = [(line["step"], line["train/loss"]) for line in recorded if "train/loss" in line]
    assert pairs == close_to(series(entries, "train/loss"))

    def touched() -> dict[Path, int]:
        """Return modification times, except of the lock and of logs that a process of wandb writes later."""
        kept = (path for path in logs.rglob("*") if path.is_file() and path.name != "lock" and path.suffix != ".log")
        return {path: path.stat().st_mtime_ns for path in kept}

    before = touched()
    spo.finish(*command("killed"), variables=offline)
    assert touched() == before, "the metrics are complete"


@pytest.mark.usefixtures("offline")
def test_work_with_another_fingerprint_is_a_new_run_at_weights_and_biases(tmp_path: Path):
    logs = tmp_path / "_logs"
    identities = []
    for work in ("first", "second", "second"):
        with open_log(logs, "wandb") as metrics_log:
            metrics_log.open_series("train", tmp_path / "a", work, [{"step": 1, "loss": 0.5}])
        identities.append(json.loads((logs / "mirrors.json").read_text())["identity"])
    assert identities[0] != identities[1] == identities[2]


@pytest.mark.usefixtures("offline")
def test_an_offline_run_leaves_one_directory(tmp_path: Path):
    logs = tmp_path / "_logs"
    for steps in (1, 2):
        with open_log(logs, "wandb") as metrics_log:
            metrics_log.open_series(
                "train", tmp_path / "a", "work", [{"step": 1 + step, "loss": 0.5} for step in range(steps)]
            )
        identity = json.loads((logs / "mirrors.json").read_text())["identity"]
        if steps == 1:  # two processes that start in one second
            (logs / "wandb" / f"offline-run-20260101_000000-{identity}-1").mkdir()
    assert [line["step"] for line in history(logs)] == [1, 2]
    assert len(list(logs.glob("wandb/offline-run-*"))) == 1


def test_entries_that_the_server_has_are_not_sent_again(offline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Online, a resumed run starts at the step after the last one that the server has."""
    sent = []

    class Run:
        starting_step, offline, url, dir = 2, False, "https://server/run", str(tmp_path)

        def define_metric(self, *_: Any, **__: Any) -> None: ...

        def log(self, figures: dict[str, float], step: int) -> None:
            sent.append((step, figures["train/loss"]))

        def finish(self, exit_code: int) -> None:
            sent.append(exit_code)

    arguments: dict[str, Any] = {}
    monkeypatch.setattr(offline, "init", lambda **given: arguments.update(given) or Run())
    steps = [{"step": i, "loss": float(i)} for i in range(1, 5)]
    with open_log(tmp_path / "_logs") as metrics_log:
        metrics_log.open_series("train", tmp_path / "a", "work", steps[:3])
    with open_log(tmp_path / "_logs", "wandb") as metrics_log:
        metrics_log.open_series("train", tmp_path / "a", "work", steps)
    assert sent == [(2, 3.0), (3, 4.0), 0]
    assert arguments["resume"] == "allow"
    assert arguments["id"] == json.loads((tmp_path / "_logs" / "mirrors.json").read_text())["identity"]
