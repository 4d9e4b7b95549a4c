"""Training on two ranks that a real Ray starts: the update of one process."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from stages import train
from stages.cluster.ranks import rank_group
from stages.cluster.session import Session
from stages.core.errors import UserError
from stages.core.progress import Summary
from stages.training.resumable import partial_directory
from tests.cluster.drivers import until
from tests.optimization.rank_runs import TrainingFolder, agree
from tests.shards.samples import Notes
from tests.test_train import save_model, write_chain

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed (the extra `deepspeed`)")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> TrainingFolder:
    folder = tmp_path_factory.mktemp("training")
    write_chain(folder / "chain", save_model(folder / "policy", seed=0))
    save_model(folder / "reference", seed=1)
    return TrainingFolder(folder)


def trained(inputs: TrainingFolder, session: Session, name: str, progress: Any = None, **changes: Any) -> Summary:
    given = inputs.options(name, **changes)
    given |= {"advantages": tuple(map(Path, given["advantages"])), "out": Path(given["out"])}
    return train.run(train.Config(**given), progress or Notes(), session=session)


def processes(session: Session) -> list[int]:
    """Return the processes of the ranks, which are started if none runs."""
    group = rank_group(session, "trainer", 2)
    group.call(process, on_report=print)
    return [worker.call(process) for worker in group.workers]


def process(workspace: Any, report: Any) -> int:
    return os.getpid()


def test_two_ranks_take_the_steps_of_one_process(inputs: TrainingFolder, session: Session):
    notes = Notes()
    trained(inputs, session, "ranks", notes, zero_stage=2)
    inputs.run_in_process("process")
    assert agree(inputs.folder / "process", inputs.folder / "ranks")
    assert "engine: deepspeed, ZeRO stage 2, 2 ranks on cpu" in notes.lines


def test_a_killed_rank_starts_again_and_training_resumes(
    inputs: TrainingFolder, session: Session, monkeypatch: pytest.MonkeyPatch
):
    options: dict[str, Any] = {"save_steps": 1, "epochs": 4}
    victim = processes(session)[1]
    saved = partial_directory(inputs.folder / "killed") / "metrics.jsonl"

    def kill() -> None:
        until(lambda: saved.exists() and saved.read_text().count("\n") >= 2, 300)
        os.kill(victim, signal.SIGKILL)

    notes, killer = Notes(), threading.Thread(target=kill)
    monkeypatch.setattr(session, "progress", notes)
    killer.start()
    trained(inputs, session, "killed", notes, zero_stage=2, **options)
    killer.join()
    (line,) = [line for line in notes.lines if "start again" in line]
    assert line == "trainer ranks start again: trainer-1: its process ended (killed, or out of memory)"
    assert any(line.startswith("resuming ") and "after step" in line for line in notes.lines), notes.lines
    inputs.run_in_process("not-killed", **options)
    assert agree(inputs.folder / "not-killed", inputs.folder / "killed", 1e-4)


def test_an_output_that_is_up_to_date_needs_no_rank(inputs: TrainingFolder, session: Session):
    trained(inputs, session, "done", zero_stage=2)
    before = processes(session)
    assert trained(inputs, session, "done", zero_stage=2).up_to_date
    assert processes(session) == before, "the ranks stay for the next call"


def test_an_error_of_the_ranks_is_one_line(inputs: TrainingFolder, session: Session):
    with pytest.raises(UserError, match=r"take a lower --learning-rate") as caught:
        trained(inputs, session, "too-hot", learning_rate=1e30)
    assert "\n" not in str(caught.value)
    assert not (inputs.folder / "too-hot").exists()
    with pytest.raises(UserError, match=r"^--engine torch runs in one process, but "):
        trained(inputs, session, "no-torch", engine="torch")
